"""scripts/report.py on what the other scripts write, and what it refuses."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from recipes.runs import refusal, run_main
from report.pages import ParsedPage, detail_line, write_result, write_run
from scripts.evaluate import main as evaluate
from scripts.report import main
from sets import random_set

report = partial(run_main, main)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "some"
    random_set(folder, documents=40, queries=12)
    return folder


def measure(beir: Path, output: Path, *more: str | Path) -> Path:
    done = run_main(evaluate, "--data", beir, "--output", output, "--details", "true", *more)
    assert done.returncode == 0, done.stderr
    return output


def test_what_was_measured_is_compared(beir: Path, bert: Path, qwen3_reranker: Path, tmp_path: Path) -> None:
    lengths = ["--query_max_length", "32", "--document_max_length", "32"]
    kinds = [*lengths, "--dims", "48,16", "--embedding_precision", "float32,int8,binary"]
    bm25 = measure(beir, tmp_path / "bm25.json", "--first_stage", "bm25")
    before = measure(beir, tmp_path / "before.json", "--model", bert, *kinds)
    after = measure(
        beir, tmp_path / "after.json", "--first_stage", "bm25", "--reranker", qwen3_reranker, "--depth", "5"
    )
    lines = [json.loads(line) for line in (tmp_path / "before.details.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 12
    assert {(line["dim"], line["embedding_precision"], line["order"]) for line in lines} >= {(48, "int8", None)}

    output, shown = tmp_path / "page.html", tmp_path / "pipeline.yaml"
    shown.write_text("steps: <all>\n")
    results = ",".join(map(str, (bm25, before, after)))
    done = report(
        "--output", output, "--results", results, "--config_file", shown, "--runs", write_run(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    verdict, compared, *_ = done.stdout.splitlines()
    assert re.match(
        r"verdict: \w+ .* the base \(.*\]\); \w+ .* BM25 \(.*\]\); nDCG@10 on 12 queries: some/test ", verdict
    )
    assert compared.startswith("some/test: nDCG@10 ")
    assert "(after, reranked against before" in done.stdout
    read = ParsedPage(output.read_text())
    assert read.loads == []
    for part in ("after, first stage", "after, fused", "48 float32 192", "16 binary 2", "Still worst", "steps: <all>"):
        assert part in read.text, part
    again = ("--output", tmp_path / "again.html", "--results", f"{before},{bm25}", "--fail_if", "not_better")
    assert report(*again).returncode == 3, "BM25 is not better than the model on these"
    assert (tmp_path / "again.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "page.html"], "give --runs, --results or both"),
        (["--results", "a.json"], "output"),
        (["--output", "a.json", "--results", "a.json"], "--output a.json exists; choose another name or remove it"),
        (["--output", "no/page.html", "--results", "a.json"], "--output no/page.html: the folder no does not exist"),
        (["--output", "page.html", "--results", "a.json,b/a.json"], "results: two files are called a"),
        (["--output", "page.html", "--results", "a.json", "--baseline", "b"], "baseline is b, expected one of the"),
        (["--output", "page.html", "--results", "none.json"], "none.json: no such file"),
        (["--output", "page.html", "--results", "a.details.jsonl"], "not a result of scripts/evaluate.py --output"),
        (["--output", "page.html", "--runs", "b"], "b has no config.yaml; expected a run folder"),
        (["--output", "page.html", "--results", "a.json", "--config_file", "c.yaml"], "config_file c.yaml: no such"),
        (["--output", "page.html", "--results", "a.json,other.json"], "are not about the same queries of set/test"),
        (["--output", "page.html", "--results", "stale.json"], "its means are not the results of stale.json"),
        (["--output", "page.html", "--results", "torn.json"], "torn.details.jsonl:2: not a line that scripts"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: list[str], message: str, workplace: Path) -> None:
    (workplace / "b").mkdir()
    write_result(workplace / "a.json", [detail_line("q0", 0.5)])
    write_result(workplace / "other.json", [detail_line("q1", 0.5)])
    write_result(workplace / "stale.json", [detail_line("q0", 0.5)])
    write_result(workplace / "new.json", [detail_line("q0", 0.6)])
    (workplace / "new.details.jsonl").replace(workplace / "stale.details.jsonl")
    with (write_result(workplace / "torn.json", [detail_line("q0", 0.5)]).with_suffix(".details.jsonl")).open(
        "a"
    ) as stream:
        stream.write('{"data": ')
    assert message in refusal(main, *arguments, folder=workplace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--details", "true"], "give both --output and --data"),
        (["--details", "true", "--output", "a.json"], "--output a.details.jsonl exists; choose another name"),
    ],
)
def test_details_need_a_place_that_is_free(arguments: list[str], message: str, beir: Path, workplace: Path) -> None:
    (workplace / "a.details.jsonl").touch()
    assert message in refusal(evaluate, "--first_stage", "bm25", "--data", str(beir), *arguments, folder=workplace)
