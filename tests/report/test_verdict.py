"""The verdict: which result is judged, against what, by which interval, and which rules it breaks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nestling.report.comparison import System, compare
from nestling.report.page import render
from nestling.report.results import METRIC, Result, read_result
from nestling.report.runs import read_run_records
from nestling.report.verdict import Verdict, judge
from nestling.retrieval.choice import Choice
from report.pages import ParsedPage, detail_line, write_result, write_run

BM25 = {"first_stage": "bm25"}
TRAFFIC = {
    **{"what": "set/test: queries", "requests": 30, "texts": 30, "tokens": 1200, "retries": 1},
    **{"seconds": 2.0, "p50_ms": 11.5, "p95_ms": 20.0, "p99_ms": 31.25, "texts_per_second": 15.0},
}


def result(
    folder: Path, name: str, values: list[float], config: dict[str, Any], groups: int | None = None, **key: Any
) -> Result:
    lines = [detail_line(f"q{i}", value, **key) for i, value in enumerate(values)]
    if groups is not None:
        lines = [{**line, "group": f"manual {i % groups}"} for i, line in enumerate(lines)]
    return replace(read_result(write_result(folder / f"{name}.json", lines)), config=config)


def verdict_on(folder: Path, final: list[float], *, base: float = 0.5, bm25: float = 0.4) -> Verdict:
    results = [
        result(folder, "bm25", [bm25] * len(final), BM25, dim=None, embedding_precision=None),
        result(folder, "base", [base] * len(final), {"model": "m"}),
        result(folder, "embedder", final, {"model": "run/final"}),
    ]
    found = judge(results, None, [])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("values", "said", "broken"),
    [
        ([0.8, 0.7, 0.9] * 10, "better than the base (+.300 [+.27", []),
        ([0.6, 0.38, 0.5] * 10, "no difference from the base (−.007 [", ["not_better"]),
        ([0.1, 0.2, 0.3] * 10, "worse than the base (−.300 [−.33", ["worse", "not_better"]),
    ],
)
def test_the_interval_decides(values: list[float], said: str, broken: list[str], tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, values)
    assert said in str(verdict)
    assert [rule for rule in ("worse", "not_better") if verdict.fails(rule)] == broken
    assert not verdict.fails(None)


def test_a_gain_that_few_groups_carry_is_no_difference(tmp_path: Path) -> None:
    values = [0.8, 0.52, 0.49] * 10
    for groups, word in ((None, "better than"), (30, "better than"), (3, "no difference from")):
        base, after = (
            result(tmp_path, name, each, {"model": name}, groups)
            for name, each in (("base", [0.5] * 30), ("after", values))
        )
        verdict = judge([base, after], None, [])
        assert verdict is not None and str(verdict).startswith(f"verdict: {word} the base (+.103 [")
        systems = [System(each, each.main_key("set/test")) for each in (base, after)]
        difference = next(each for each in compare(*systems) if each.metric == METRIC)
        assert difference.p is not None and difference.low is not None
        assert (difference.p < 0.05, difference.low > 0) == (groups != 3, groups != 3)


@pytest.mark.parametrize(("groups", "word"), [(1, "no difference from"), (5, "no difference from"), (6, "better than")])
def test_a_few_groups_that_agree_prove_nothing(groups: int, word: str, tmp_path: Path) -> None:
    base, after = (
        result(tmp_path, name, each, {"model": name}, groups)
        for name, each in (("base", [0.5] * 30), ("after", [0.6 + i / 100 for i in range(30)]))
    )
    verdict = judge(
        [replace(base, per_query={key: replace(each, groups=None) for key, each in base.per_query.items()}), after],
        None,
        [],
    )
    assert verdict is not None and str(verdict).startswith(f"verdict: {word} the base (+")


def test_better_than_one_and_worse_than_the_other_is_worse(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, [0.6] * 30, bm25=0.9)
    line = "verdict: better than the base (+.100 [+.100, +.100]); worse than BM25 (−.300 [−.300, −.300]); "
    assert str(verdict).startswith(line)
    assert verdict.fails("worse")
    facts = ["nDCG@10 on 30 queries: set/test .600 (embedder)", "at 8 dimensions in float32, 32 bytes a vector"]
    assert list(verdict.facts) == [*facts, "not served"]


def test_what_dev_chose_is_judged_and_what_a_server_gave_is_said(tmp_path: Path) -> None:
    order = {"dim": None, "embedding_precision": None, "order": "fused"}
    base = result(tmp_path, "base", [0.5] * 30, {"model": "m"})
    embedder = result(tmp_path, "embedder", [0.7] * 30, {"model": "e"})
    served = replace(result(tmp_path, "served", [0.6995] * 30, {"model": "e"}), traffic=[TRAFFIC])
    both = result(
        tmp_path, "both", [0.3] * 30, {"model": "e", "reranker": "r", "rerank_weight": "choice.json"}, **order
    )
    choice = Choice("dev", 30, {"m": 0.5, "e": 0.6}, "e", 20)
    run = write_run(tmp_path / "run")
    verdict = judge([base, embedder, served, both], choice, read_run_records([run]))
    assert verdict is not None
    assert "better than the base (+.200" in str(verdict)
    assert "served, within 0.0005 of what was measured here" in verdict.facts
    assert any(fact.startswith("training took 0") and fact.endswith(" tokens") for fact in verdict.facts)
    reranked = judge([base, embedder, served, both], replace(choice, reranker="r", rerank_weight=0.3), [])
    assert reranked is not None
    assert "worse than the base (−.200" in str(reranked)
    assert "worse than the embedder alone (−.400" in str(reranked), "the dev set is not the test set"
    assert reranked.fails("worse")
    assert "(both, fused)" in reranked.facts[0]
    assert reranked.facts[1] == "at 8 dimensions in float32, 32 bytes a vector"

    page = render(title="t", runs=[], results=[base, embedder, served], choice=choice, verdict=str(verdict))
    assert page.summary[0] == str(verdict)
    text = ParsedPage(page.html).text
    assert "set/test: queries 30 30 1,200 1 11.5 20.0 31.2 15.0" in text
    page = render(title="t", runs=[], results=[base, embedder, both], choice=choice)
    assert page.summary[0].startswith("set/test: nDCG@10 .500 → .700, +.200"), "of what dev chose, not of the last"
    page = render(title="t", runs=[], results=[base, embedder, both], choice=replace(choice, reranker="r"))
    assert page.summary[0].startswith("set/test: nDCG@10 .500 → .300, −.200")


RERANKED = {"dim": None, "embedding_precision": None, "order": "reranked"}


def test_what_training_did_not_better_is_no_better(tmp_path: Path) -> None:
    """A build that asks for better must not pass because BM25 is worse than the base that dev kept."""
    bm25 = result(tmp_path, "bm25", [0.4] * 30, BM25, dim=None, embedding_precision=None)
    base = result(tmp_path, "base", [0.5] * 30, {"model": "m"})
    embedder = result(tmp_path, "embedder", [0.45] * 30, {"model": "e"})
    verdict = judge([bm25, base, embedder], Choice("dev", 30, {"m": 0.5, "e": 0.4}, "m", 20), [])
    assert verdict is not None
    assert str(verdict).startswith("verdict: no difference from the base, which dev chose; better than BM25 (+.100 ")
    assert verdict.fails("not_better")
    assert not verdict.fails("worse")
    served = replace(result(tmp_path, "served", [0.451] * 30, {"model": "e"}), traffic=[TRAFFIC])
    verdict = judge([bm25, base, served, embedder], Choice("dev", 30, {"m": 0.5, "e": 0.4}, "m", 20), [])
    assert verdict is not None
    assert "another model was served, within 0.0010 of what was measured here" in verdict.facts
    only = judge([base], Choice("dev", 30, {"m": 0.5}, "m", 20), [])
    assert only is not None and str(only).startswith("verdict: no difference from the base, which dev chose; nDCG@10")


def test_a_reranker_that_dev_rejected_is_no_base(tmp_path: Path) -> None:
    bm25 = result(tmp_path, "bm25", [0.4] * 30, BM25, dim=None, embedding_precision=None)
    reranker = result(tmp_path, "reranker", [0.2] * 30, {**BM25, "reranker": "r"}, **RERANKED)
    choice = Choice("dev", 30, {}, None, 20, weights=[0.4] * 11, p_values=[1.0] * 11)
    verdict = judge([bm25, reranker], choice, [])
    assert verdict is not None
    assert str(verdict).startswith("verdict: no difference from BM25, which dev chose; nDCG@10 on 30 queries")
    assert verdict.fails("not_better")
    chosen = judge([bm25, reranker], replace(choice, reranker="r", rerank_weight=0.5), [])
    assert chosen is not None
    assert str(chosen).startswith("verdict: worse than BM25 (−.200 [−.200, −.200]); nDCG@10"), "it has no base"


def test_a_server_is_compared_with_what_was_measured_of_the_same_models(tmp_path: Path) -> None:
    base = result(tmp_path, "base", [0.5] * 30, {"model": "m"})
    embedder = result(tmp_path, "embedder", [0.7] * 30, {"model": "e"})
    reranker = result(tmp_path, "reranker", [0.2] * 30, {**BM25, "reranker": "r"}, **RERANKED)
    both = result(tmp_path, "both", [0.9] * 30, {"model": "e", "reranker": "r"}, **RERANKED)
    of_reranker = replace(result(tmp_path, "served", [0.201] * 30, BM25, **RERANKED), traffic=[TRAFFIC])
    of_base = replace(result(tmp_path, "served-base", [0.502] * 30, {"model": "m"}), traffic=[TRAFFIC])
    said = {
        "served, within 0.0010": [of_reranker],
        "another model was served, within 0.0020": [of_base],
        "served, within 0.0020": [of_base, of_reranker],
    }
    for fact, served in said.items():
        verdict = judge([base, embedder, reranker, *served, both], None, [])
        assert verdict is not None
        assert f"{fact} of what was measured here" in verdict.facts
    elsewhere = replace(of_base, config={"model": "./e"})  # the same directory in other words, or only a server's
    verdict = judge([base, embedder, elsewhere], None, [])
    assert verdict is not None and "served, within 0.1980 of what was measured here" in verdict.facts


def test_without_details_or_without_anything_to_compare_with(tmp_path: Path) -> None:
    base = replace(result(tmp_path, "base", [0.5] * 3, {"model": "m"}), per_query={})
    after = result(tmp_path, "after", [0.6] * 3, {"model": "n"})
    verdict = judge([base, after], None, [])
    assert verdict is not None
    assert str(verdict).startswith("verdict: not tested against the base; ")
    assert verdict.fails("not_better")
    assert not verdict.fails("worse")
    assert judge([after], None, []) is None
    assert judge([], None, []) is None
