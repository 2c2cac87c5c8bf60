"""What a result is worth, in one line: better, no difference or worse than the base, than BM25 and, of a reranker, than
the embedder without it, and at what cost.

Where dev chose nothing that was trained, the result is the base (or BM25) itself, and no better than that.

Better and worse mean that the 95% bootstrap interval of the mean difference of nDCG@10, paired over the queries of all
test sets together, lies above or below 0. Where a set names groups of queries, these are drawn, and the p value of the
randomisation test over groups must be at most 0.05, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nestling.report.comparison import System, format_change, format_score, groups_of, require_same_queries
from nestling.report.results import METRIC, Result, ResultKey
from nestling.report.runs import RunRecord
from nestling.report.sets import vector_bytes
from nestling.retrieval.choice import MAX_P, Choice
from nestling.retrieval.significance import bootstrap_interval, randomisation_p, sums_of_groups

BETTER, SAME, WORSE, UNTESTED = "better than", "no difference from", "worse than", "not tested against"


@dataclass(frozen=True)
class Against:
    """A result against another one.

    Args:
        name: What the other is, such as BM25.
        word: `BETTER`, `SAME`, `WORSE`; or `UNTESTED`, without details of each query.
        change: Mean difference over all queries.
        low: Lower end of its interval; None if it is not tested.
        high: Upper end.
    """

    name: str
    word: str
    change: float = 0.0
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.word} {self.name}"
        return (
            f"{self.word} {self.name} ({format_change(self.change)} "
            f"[{format_change(self.low)}, {format_change(self.high)}])"
        )


@dataclass(frozen=True)
class Verdict:
    """A verdict.

    Args:
        against: The result against the base, BM25 and the embedder without the reranker, those that were measured.
        facts: What the result is, whether it was served, and what it cost.
    """

    against: Sequence[Against]
    facts: Sequence[str]

    def __str__(self) -> str:
        return f"verdict: {'; '.join([*map(str, self.against), *self.facts])}"

    def fails(self, rule: str | None) -> bool:
        """Whether a rule is broken: "worse" by one that is worse, "not_better" by one that is not better."""
        words = {each.word for each in self.against}
        return (rule == "worse" and WORSE in words) or (rule == "not_better" and words != {BETTER})


def judge(results: Sequence[Result], choice: Choice | None, runs: Sequence[RunRecord]) -> Verdict | None:
    """The verdict on the model that is handed over; None without anything to compare it with.

    Args:
        results: Of all test sets, in the order of a report: the last is the one after training.
        choice: What the dev set chose; the result of these models is judged if it was measured.
        runs: Of training, whose cost is said.
    """
    measured = [each for each in results if not each.traffic]
    if not measured:
        return None
    final = chosen_result(measured, choice)
    kept = choice is not None and keeps(choice, final)
    base = next((each for each in measured if not is_bm25(each)), None)
    if kept and is_bm25(final):  # what dev rejected is no base
        base = None
    others = [("the base", base), ("BM25", next(filter(is_bm25, measured), None))]
    if not is_embedder(final):
        alone = (each for each in measured if each is not base and same_model(each, final))
        others.append(("the embedder alone", next(alone, None)))
    against = [Against(f"{name}, which dev chose", SAME) for name, other in others if kept and other is final]
    against += [compare_all(name, other, final) for name, other in others if other is not None and other is not final]
    if not against:
        return None
    return Verdict(against, [*described(final, measured), served_fact(results, measured, final), *costs(runs)])


def keeps(choice: Choice, final: Result) -> bool:
    """Whether dev chose nothing that was trained, and a result is that of what it chose."""
    trained = choice.trained("embedder") or choice.trained("reranker")
    return not trained and models_of(final) == (choice.embedder, choice.reranker)


def models_of(result: Result) -> tuple[str | None, str | None]:
    """Its embedder and its reranker."""
    return result.config.get("model"), result.config.get("reranker")


def is_embedder(result: Result) -> bool:
    return result.config.get("model") is not None and result.config.get("reranker") is None


def is_bm25(result: Result) -> bool:
    return result.config.get("first_stage") == "bm25" and result.config.get("reranker") is None


def chosen_result(measured: Sequence[Result], choice: Choice | None) -> Result:
    """The result of the models that dev has chosen; the last one without a choice, and where they were not measured."""
    if choice is None:
        return measured[-1]
    found = (each for each in measured if models_of(each) == (choice.embedder, choice.reranker))
    return next(found, measured[-1])


def system_of(result: Result, data: str) -> System:
    """What is served of a result: of a reranker the fused order if its weight was set, else its own."""
    keys = result.main_keys(data)
    wanted = "fused" if result.config.get("rerank_weight") is not None else "reranked"
    return System(result, next((key for key in keys if key.order == wanted), result.main_key(data)))


def compare_all(name: str, other: Result, final: Result) -> Against:
    """A result against another over the queries of all sets that both have."""
    differences, groups, grouped = [], list[str](), False
    for data in [each for each in final.datasets if each in other.datasets]:
        before, after = system_of(other, data), system_of(final, data)
        queries_before, queries_after = before.per_query, after.per_query
        if queries_before is None or queries_after is None:
            return Against(name, UNTESTED)
        require_same_queries(before, after, queries_before, queries_after)
        differences.append(queries_after.metrics[METRIC] - queries_before.metrics[METRIC])
        named = groups_of(queries_before, queries_after)
        groups += [f"{data}/{group}" for group in named or queries_after.ids]
        grouped |= named is not None
    if not differences:
        return Against(name, UNTESTED)
    every = np.concatenate(differences)[:, None]
    low, high = (float(each[0]) for each in bootstrap_interval(every, groups if grouped else None))
    # Few groups are drawn too much alike for the interval to be wide enough; the test is exact for any number.
    sure = not grouped or float(randomisation_p(sums_of_groups(every, groups))[0]) <= MAX_P
    word = BETTER if low > 0 and sure else WORSE if high < 0 and sure else SAME
    return Against(name, word, float(every.mean()), low, high)


def described(final: Result, measured: Sequence[Result]) -> Iterator[str]:
    """What was measured: figures, queries, dimension and size of a vector."""
    systems = [system_of(final, data) for data in final.datasets]
    figures = ", ".join(f"{each.key.data} {format_score(each.metrics[METRIC])}" for each in systems)
    queries = sum(final.query_counts[each.key] for each in systems)
    order = systems[0].key.order
    yield f"{METRIC} on {queries:,} queries: {figures} ({final.name}{f', {order}' if order else ''})"
    dim, precision = systems[0].key.dim, systems[0].key.embedding_precision or "float32"
    if dim is None and final.config.get("model") is not None:  # what the reranker's documents were found with
        alone = [key.dim or 0 for each in measured if same_model(each, final) for key in each.metrics]
        dim = next(iter(final.config.get("dims") or []), max(alone, default=0)) or None
    if dim is not None:
        yield f"at {dim} dimensions in {precision}, {vector_bytes(dim, precision):,} bytes a vector"


def same_model(result: Result, final: Result) -> bool:
    return is_embedder(result) and result.config["model"] == final.config.get("model")


def served_fact(results: Sequence[Result], measured: Sequence[Result], final: Result) -> str:
    """Whether a server was measured, and how far it is from what was measured here."""
    served = [(each, key) for each in results if each.traffic for key in each.metrics]
    if not served:
        return "not served"
    pairs = [(each, measured_alike(each, key, measured), key) for each, key in served]
    known = [(one, other, key) for one, other, key in pairs if other is not None]
    # A model is another one only where it was measured here too: a directory may have several names.
    others = [
        one.config.get("model") is not None and alike(one, other, "model") and not alike(one, final, "model")
        for one, other, _ in known
    ]
    what = "another model was served" if others and all(others) else "served"
    differences = [abs(one.metrics[key][METRIC] - other.metrics[key][METRIC]) for one, other, key in known]
    return f"{what}, within {max(differences):.4f} of what was measured here" if differences else what


def measured_alike(served: Result, key: ResultKey, measured: Sequence[Result]) -> Result | None:
    """The last result that has a row of a served one, of the same first stage and, if there is one, the same model."""
    found = [each for each in measured if key in each.metrics and alike(each, served, "first_stage")]
    return next((each for each in reversed(found) if alike(each, served, "model")), found[-1] if found else None)


def alike(one: Result, other: Result, setting: str) -> bool:
    return bool(one.config.get(setting) == other.config.get(setting))


def costs(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Time and tokens of training."""
    if runs:
        seconds, tokens = (sum(each) for each in zip(*map(cost_of, runs), strict=True))
        yield f"training took {tqdm.format_interval(seconds)} and {tokens:,.0f} tokens"


def cost_of(run: RunRecord) -> tuple[float, int]:
    """Seconds and tokens of the logged steps of a run."""
    seconds, before = 0.0, 0
    for line in run.steps:
        if line.get("tokens_per_second"):
            seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    return seconds, before
