"""What a run prints of its dev sets: the first stage beside a reranker, harm, and that nothing was measured."""

from nestling.training.dev_results import UNMEASURED, evaluation_table, results_text

FIRST = {"shell": {20: {"nDCG@10": 0.6, "MRR@10": 0.5}}}
BETTER = {"shell": {20: {"nDCG@10": 0.7, "MRR@10": 0.6}}}
WORSE = {"shell": {20: {"nDCG@10": 0.1768, "MRR@10": 0.1}}}


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_first_stage_stands_beside_a_reranker() -> None:
    shown = cells(evaluation_table(BETTER, "depth", FIRST))
    assert ["shell,", "first", "stage", "20", "0.6000", "0.5000"] in shown
    assert shown[-1] == ["shell", "20", "0.7000", "0.6000"]
    found = cells(results_text(WORSE, BETTER, "depth", FIRST))
    assert found[0] == ["dev", "set", "depth", "first", "stage", "nDCG@10", "before", "after"]
    assert found[-1] == ["shell", "20", "0.6000", "0.1768", "0.7000"]


def test_a_reranker_that_does_harm_is_told() -> None:
    *_, last = results_text(WORSE, WORSE, "depth", FIRST).splitlines()
    assert last.startswith(
        "warning: reranking does harm on shell: 0.6000 in the first stage's order, 0.1768 reranked; serve the first"
    )
    assert "harm" not in results_text(WORSE, BETTER, "depth", FIRST)


def test_an_embedder_has_no_first_stage() -> None:
    shown = cells(results_text(WORSE, BETTER, "dim", {}))
    assert shown[0] == ["dev", "set", "dim", "nDCG@10", "before", "after"]
    assert shown[-1] == ["shell", "20", "0.1768", "0.7000"]


def test_a_run_without_a_dev_set_says_that_nothing_was_measured() -> None:
    assert results_text({}, {}, "dim", {}) == UNMEASURED
