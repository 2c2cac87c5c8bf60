"""The page: what it shows of results and runs, that texts are escaped, and that it loads nothing."""

import re
from pathlib import Path

import pytest

from nestling.report.page import Page, render, write_run_report
from nestling.report.results import read_result
from nestling.report.runs import read_run_records
from report.pages import ParsedPage, detail_line, document, write_result, write_run

HOSTILE = '<script>alert(1)</script> & <img src="http://x/y.png" onerror="go()"> </style>{{ 7 * 7 }}'


def draw(*paths: Path, runs: tuple[Path, ...] = (), baseline: str | None = None) -> Page:
    return render(
        title=HOSTILE,
        runs=read_run_records(runs),
        results=[read_result(each) for each in paths],
        baseline=baseline,
        settings={"pipeline.yaml": HOSTILE},
    )


def test_texts_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    lines = [
        {**detail_line("q0", 0.5), "query": HOSTILE, "first": [document(HOSTILE, 0.5, 1.0, HOSTILE)]},
        detail_line("q1", 1.0),
    ]
    before = write_result(tmp_path / "be<b>fore.json", lines)
    after = write_result(
        tmp_path / "after.json", [{**line, "metrics": {"nDCG@10": 0.9, "MRR@10": 0.9}} for line in lines]
    )
    page = draw(before, after, runs=(write_run(tmp_path / "<i>run", more=HOSTILE),))
    read = ParsedPage(page.html.replace("http://x/y.png", ""))
    assert read.loads == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(read.tags)
    whole = ParsedPage(page.html).text
    assert whole.count("<script>alert(1)</script>") >= 5, "title, heading, query, document, settings"
    assert "{{ 7 * 7 }}" in whole
    assert "be<b>fore" in whole
    assert "<i>run" in whole


def test_a_result_is_compared_with_the_baseline(tmp_path: Path) -> None:
    values = {"before": [0.2, 0.4, 0.6, 0.8], "after": [0.6, 0.4, 0.9, 0.7]}
    paths = [
        write_result(tmp_path / f"{name}.json", [detail_line(f"q{i}", value) for i, value in enumerate(each)])
        for name, each in values.items()
    ]
    page = draw(*paths)
    (line,) = page.summary
    assert line.startswith("set/test: nDCG@10 .500 → .650, +.150 [")
    assert "better on 2 queries, the same on 1, worse on 1 (after against before, 8 dimensions, float32)" in line
    text = ParsedPage(page.html).text
    assert "before 8 dimensions, float32 the baseline .500 .500" in text
    assert "2 / 1 / 1" in text
    lost, worst, gained = re.split("Lost most nDCG@10|Still worst|Gained most nDCG@10", text)[1:]
    assert re.findall(r"asking (q\d)", lost) == ["q3"]
    assert re.findall(r"asking (q\d)", worst) == ["q1"]
    assert re.findall(r"asking (q\d)", gained)[:2] == ["q0", "q2"]
    assert ".800 → .700" in lost
    assert "12 ✓ relevant · score 0.9000 · r-q3" in lost
    assert "1 not judged relevant · score 0.5000 · d0-q3 text of d0-q3" in lost


def test_the_baseline_is_the_first_of_a_model_or_the_one_that_is_named(tmp_path: Path) -> None:
    bm25 = write_result(
        tmp_path / "bm25.json", [detail_line("q0", 0.1, dim=None, embedding_precision=None)], model=None
    )
    one, other = (write_result(tmp_path / f"{name}.json", [detail_line("q0", 0.5)]) for name in ("one", "other"))
    assert "other against one" in draw(bm25, one, other).summary[0]
    assert "other against bm25" in draw(bm25, one, other, baseline="bm25").summary[0]


def test_a_result_above_the_last_one_is_in_the_summary(tmp_path: Path) -> None:
    values = {"before": 0.5, "embedder": 0.75, "both": 0.25}
    paths = [write_result(tmp_path / f"{name}.json", [detail_line("q0", value)]) for name, value in values.items()]
    last, highest = draw(*paths).summary
    assert last.startswith("set/test: nDCG@10 .500 → .250, −.250 [") and "both against before" in last
    assert highest.startswith("highest: set/test: nDCG@10 .500 → .750, +.250 [") and "embedder against" in highest


def test_long_texts_are_collapsed(tmp_path: Path) -> None:
    long = "word " * 100
    lines = [{**detail_line("q0", 0.5), "first": [document("d", 0.5, 0.0, long), document("e", 0.4, 0.0, "short")]}]
    html = draw(write_result(tmp_path / "only.json", lines)).html
    assert html.count('<details class="more">') == 1
    assert ParsedPage(html).text.count("word") == 100


def test_without_details_only_means_are_compared(tmp_path: Path) -> None:
    paths = [write_result(tmp_path / f"{i}.json", [detail_line("q0", i / 4)], details=False) for i in (1, 2)]
    page = draw(*paths)
    assert page.summary == ["set/test: nDCG@10 .250 → .500, +.250 (2 against 1, 8 dimensions, float32)"]
    assert "Scores" not in ParsedPage(page.html).text


def test_a_single_result_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    page = draw(write_result(tmp_path / "only.json", [detail_line("q0", 0.25), detail_line("q1", 1.0)]))
    assert page.summary == []
    text = ParsedPage(page.html).text
    assert "Worst" in text
    assert "asking q0" in text
    assert "asking q1" not in text, "its metric is 1"


def test_a_reranker_is_compared_with_its_first_stage(tmp_path: Path) -> None:
    orders = {"first stage": 0.25, "reranked": 0.75, "fused": 0.5}
    lines = [
        detail_line("q0", value, dim=None, embedding_precision=None, order=order) for order, value in orders.items()
    ]
    page = draw(write_result(tmp_path / "reranker.json", lines))
    assert "set/test: nDCG@10 .250 → .750, +.500 [" in page.summary[0]
    assert page.summary[0].endswith("(reranker, reranked against reranker, first stage)")
    text = ParsedPage(page.html).text
    assert all(f"reranker, {order}" in text for order in orders)


def test_dimensions_and_precisions_are_shown_by_size(tmp_path: Path) -> None:
    kinds = [(dim, embedding_precision) for dim in (8, 4) for embedding_precision in ("float32", "int8", "binary")]
    lines = [detail_line("q0", 1 / (1 + i), dim=dim, embedding_precision=kind) for i, (dim, kind) in enumerate(kinds)]
    paths = [write_result(tmp_path / f"{name}.json", lines) for name in ("before", "after")]
    text = ParsedPage(draw(*paths).html).text
    assert "nDCG@10 by dimension" in text
    assert "nDCG@10 by size" in text
    assert "8 float32 32 1.000 1.000 4 float32 16 .250 .250 8 int8 8 .500 .500" in text
    assert "after, binary" in text


def test_a_run_shows_its_curves_data_and_settings(tmp_path: Path) -> None:
    page = draw(runs=(write_run(tmp_path / "run", steps=5000),))
    assert page.summary == ["dev: nDCG@10 .250 → .500, +.250 (run, step 5,000, on the dev set that chose it)"]
    text = ParsedPage(page.html).text
    for part in (
        "nDCG@10 on the dev sets",
        "Loss",
        "Learning rate",
        "Tokens a second",
        "1,234",
        "dropped 4: empty query",
    ):
        assert part in text
    assert "Gradient norm" not in text, "it was never finite"
    assert "ignored field 'extra' in 4 rows" in text
    assert "save_total_limit: 3" in text
    assert len(page.html) < 60_000, "long curves are thinned"


def test_a_run_is_compared_by_query_with_what_it_was_before(tmp_path: Path) -> None:
    run, values = write_run(tmp_path / "run", steps=6), {"a": (0.5, 1.0), "b": (0.25, 0.5), "c": (0.0, 0.0)}
    (run / "dev").mkdir()
    more = {"data": "dev"}
    for name, at in (("step-0", 0), ("step-6", 1)):
        write_result(
            run / "dev" / f"{name}.json", [detail_line(query, each[at], **more) for query, each in values.items()]
        )
    bm25 = [detail_line(query, 0.25, **more, dim=None, embedding_precision=None) for query in values]
    write_result(run / "dev" / "bm25.json", bm25, model=None)
    page = draw(runs=(run,))
    (line,) = page.summary
    assert line.startswith("dev: nDCG@10 .250 → .500, +.250 [")
    assert line.endswith(
        "; better on 2 queries, the same on 1, worse on 0 (step 6 against before training, 8 dimensions, float32)"
    )
    text = ParsedPage(page.html).text
    for part in ("BM25", "before training 8 dimensions, float32 the baseline", "Gained most nDCG@10", "asking a"):
        assert part in text, part
    two = (
        (run / "metrics.jsonl")
        .read_text()
        .replace('"step": 3,', '"step": 3, "eval": {"dev": {"8": {"nDCG@10": 0.4}}},')
    )
    (run / "metrics.jsonl").write_text(two)
    assert "(step 6, chosen by these queries against before training" in draw(runs=(run,)).summary[0]
    (run / "dev" / "step-6.json").unlink()
    assert "on the dev set that chose it" in draw(runs=(run,)).summary[0]


def test_a_run_without_dev_sets_has_no_before_and_after(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "eval" not in line))
    page = draw(runs=(run,))
    assert page.summary == ["Nothing was measured: no evaluation while training, and no result of a test set."]
    text = ParsedPage(page.html).text
    assert "Loss" in text
    assert "dev set" not in text


def test_several_runs_share_their_charts(tmp_path: Path) -> None:
    page = draw(runs=(write_run(tmp_path / "one"), write_run(tmp_path / "other")))
    assert len(page.summary) == 2
    text = ParsedPage(page.html).text
    assert "one, dev other, dev" in text
    assert text.count("Tokens a second") == 1
    assert page.html.count('class="curve l1 d1"') >= 4, "the second line has a colour and dashes of its own"


def test_runs_of_the_same_name_show_more_of_their_path(tmp_path: Path) -> None:
    for place in ("embed", "rerank", "embed/other"):
        (tmp_path / place).mkdir()
    runs = tuple(write_run(tmp_path / name) for name in ("embed/run", "rerank/run", "embed/other/run", "last"))
    text = ParsedPage(draw(runs=runs).html).text
    for name in ("embed/run", "rerank/run", "other/run", "last"):
        assert f"{name}, dev" in text and f"{name}/config.yaml" in text, name
    with pytest.raises(ValueError, match=r"runs: .*/embed/\.\./last is given twice"):
        draw(runs=(tmp_path / "embed" / ".." / "last", runs[-1]))


def test_an_interrupted_run_is_shown_as_far_as_it_went(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "los')
    (run / "read.json").unlink()
    assert "Loss" in ParsedPage(draw(runs=(run,)).html).text


def test_a_report_that_fails_is_logged_and_leaves_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run")
    write_run_report(run)
    assert "Learning rate" in ParsedPage((run / "report.html").read_text()).text
    (run / "report.html").unlink()
    (run / "run.json").write_text("{}")
    write_run_report(run)
    assert not (run / "report.html").exists()
    assert "the run is complete without it" in caplog.text
    assert "is not what a run writes" in caplog.text
