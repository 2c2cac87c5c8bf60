"""What a run prints of its dev sets: a table after each evaluation, and at its end what training was worth."""

from collections.abc import Iterator, Mapping

from nestling.console import table
from nestling.export.card import before_and_after
from nestling.run_files import Results

UNMEASURED = (
    "nothing was measured: the run has no dev set, so final/ is made of its last step; --dev FOLDER measures while it "
    "trains, scripts/evaluate.py measures its model"
)


def evaluation_table(results: Results, axis: str, first_stage: Results) -> str:
    """Results in a table, a line for each dev set and value of the axis; those of a reranker's first stage before.

    Args:
        results: Of the model, by dev set and value of the axis.
        axis: Name of the axis.
        first_stage: Of the candidates in their own order, for some or no dev sets.
    """
    rows: list[list[object]] = []
    for name, by_value in results.items():
        for value, metrics in by_value.items():
            before = first_stage.get(name, {}).get(value)
            rows += [] if before is None else [[f"{name}, first stage", value, *before.values()]]
            rows.append([name, value, *metrics.values()])
    names = list(next(iter(next(iter(results.values())).values())))
    return table(["dev set", axis, *names], rows, digits=4)


def results_text(before: Results, after: Results, axis: str, first_stage: Results) -> str:
    """nDCG@10 before and after training, beside that of a reranker's first stage, and where a reranker does harm."""
    scores = [each for each in before_and_after(before, after) if each.metric == "nDCG@10"]
    if not scores:
        return UNMEASURED
    order = {each.dataset: first_stage.get(each.dataset, {}).get(each.dim, {}) for each in scores}
    shown = ["first stage"] if first_stage else []
    rows = [
        [each.dataset, each.dim, *(order[each.dataset].get("nDCG@10") for _ in shown), each.before, each.after]
        for each in scores
    ]
    titles = ["dev set", axis, *shown, "nDCG@10 before", "after"]
    return "\n".join([table(titles, rows, digits=4), *harm(after, first_stage)])


def harm(after: Results, first_stage: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Iterator[str]:
    """A line for each dev set whose candidates stand better in their own order than in the reranker's."""
    for name, by_value in first_stage.items():
        for value, metrics in by_value.items():
            reranked = after.get(name, {}).get(value, {}).get("nDCG@10")
            if reranked is not None and reranked < metrics["nDCG@10"]:
                yield (
                    f"warning: reranking does harm on {name}: {metrics['nDCG@10']:.4f} in the first stage's order, "
                    f"{reranked:.4f} reranked; serve the first stage alone, or see whether both fused are better "
                    "(scripts/evaluate.py --reranker)"
                )
