"""What a run keeps of each query of its dev sets for its page: before training, at the best step, by a first stage.

The files are in the folder dev/ of the run, as scripts/evaluate.py writes them (docs/reports.md): step-N.json with the
metrics, and beside it the details of each query at the largest value of the evaluation axis.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nestling.config import details_path
from nestling.console import working
from nestling.distributed.ranks import rank_and_world
from nestling.models.embedder import Embedder
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import ranks_in_candidates
from nestling.retrieval.details import TOP, RetrievalDetails, candidate_details, embedder_details, run_details
from nestling.retrieval.evaluation import encode_set, say_truncated
from nestling.retrieval.first_stage import bm25_run, qrels_of
from nestling.retrieval.metrics import Floats, RelevantRanks, mean_metrics, ranks_in_run
from nestling.retrieval.nearest import search_top
from nestling.retrieval.result_files import Measurement, ResultRow, write_details, write_results
from nestling.retrieval.search import EncodedSet, relevant_ranks, relevant_ranks_and_scores
from nestling.run_files import BM25, DEV, FIRST_STAGE, step_file
from nestling.training.dev_sets import RerankDevSet

# BM25 searches collections up to this size, in about a minute; sets with more queries are kept without their details.
MOST_DOCUMENTS, MOST_QUERIES = 50_000, 5_000


@dataclass(frozen=True)
class DevEvaluation:
    """An evaluation of one dev set.

    Args:
        retrieval_set: The set.
        metrics: {metric: value} at each value of the evaluation axis; at 0 where there is none.
        details: Computes what was found for each query, at the largest value; a collective call.
    """

    retrieval_set: RetrievalSet
    metrics: Mapping[int, Mapping[str, float]]
    details: Callable[[], RetrievalDetails]

    @property
    def is_small(self) -> bool:
        """Whether details are kept: they take some kilobytes a query."""
        return len(self.retrieval_set.queries) <= MOST_QUERIES

    def with_details(self) -> "DevEvaluation":
        """The same with its details computed, if they are kept; all ranks must call it."""
        if not self.is_small:
            return self
        found = self.details()
        return replace(self, details=lambda: found)


def evaluate_dims(
    embedder: Embedder,
    dev_set: RetrievalSet,
    dims: Sequence[int],
    *,
    max_length: int | None,
    instruction: str | None,
    equal_forwards: bool,
    progress: bool,
) -> DevEvaluation:
    """An embedder's evaluation at each dimension; all ranks must call it. Arguments as in `evaluate_embedder`."""
    encoded = encode_set(
        embedder,
        dev_set,
        query_max_length=max_length,
        document_max_length=max_length,
        instruction=instruction,
        equal_forwards=equal_forwards,
        progress=progress,
    )
    if progress:
        say_truncated(embedder, dev_set, encoded, (max_length, max_length))
    full = max(dims)
    ranks, scores = relevant_ranks_and_scores(encoded, full)
    metrics = {dim: mean_metrics(ranks if dim == full else relevant_ranks(encoded, dim)) for dim in dims}
    return DevEvaluation(dev_set, metrics, partial(details_at, encoded, dev_set, ranks, scores, full))


def details_at(
    encoded: EncodedSet, dev_set: RetrievalSet, ranks: RelevantRanks, scores: Floats, dim: int
) -> RetrievalDetails:
    """What was found for each query; on several ranks, each of which has some documents alone, without other scores."""
    if rank_and_world()[1] == 1:
        return embedder_details(encoded, dev_set, ranks, scores, dim, "float32")
    top = search_top(encoded, dev_set, TOP, dim=dim)
    return RetrievalDetails(ranks, scores, top, [scores[:0]] * len(dev_set.queries))


def evaluate_order(dev_set: RerankDevSet, scores: Sequence[Floats]) -> DevEvaluation:
    """The evaluation of a reranker's candidates in the order of some scores, Q arrays of float64."""
    retrieval_set, candidates = dev_set.retrieval_set, dev_set.candidates
    ranks = ranks_in_candidates(scores, candidates, retrieval_set)
    details = partial(candidate_details, scores, candidates, retrieval_set, ranks)
    return DevEvaluation(retrieval_set, {dev_set.depth: mean_metrics(ranks)}, details)


def keep_bm25(folder: Path, dev_sets: Sequence[RetrievalSet]) -> None:
    """Measure BM25 on the dev sets that are small enough, and write it into the run folder, unless it is there."""
    small = [each for each in dev_sets if len(each.documents) <= MOST_DOCUMENTS]
    if small and not (folder / DEV / BM25).exists():
        with working("measuring BM25 on the dev sets"):
            write_evaluations(folder / DEV / BM25, [evaluate_bm25(each) for each in small], None)


def evaluate_bm25(dev_set: RetrievalSet) -> DevEvaluation:
    found = bm25_run(dev_set)
    ranks = ranks_in_run(found, qrels_of(dev_set))
    return DevEvaluation(dev_set, {0: mean_metrics(ranks)}, partial(run_details, found, dev_set, ranks))


def keep_first_stage(folder: Path, dev_sets: Sequence[RerankDevSet]) -> None:
    """Write the first stage's own order into the run folder of a reranker, unless it is there."""
    if dev_sets and not (folder / DEV / FIRST_STAGE).exists():
        orders = [evaluate_order(each, each.candidates.first_stage_scores) for each in dev_sets]
        write_evaluations(folder / DEV / FIRST_STAGE, orders, None)


def keep_evaluation(
    folder: Path, step: int, best_before: int | None, evaluations: Sequence[DevEvaluation], *, model: str, axis: str
) -> None:
    """Write the evaluation of step 0 or of a new best step into the run folder; older ones but step 0's are removed.

    Args:
        folder: The run folder.
        step: The step.
        best_before: The step that was the best until now, whose files stay: this one has no checkpoint yet.
        evaluations: Of each dev set.
        model: The model that is trained.
        axis: The evaluation axis, "dim" or "depth".
    """
    write_evaluations(folder / DEV / step_file(step), evaluations, model, dims=axis == "dim")
    kept = {BM25, FIRST_STAGE, *(step_file(each) for each in (0, step, best_before) if each is not None)}
    for path in (folder / DEV).glob("step-*.json"):
        if path.name not in kept:
            path.unlink()
            details_path(path).unlink(missing_ok=True)


def write_evaluations(
    path: Path, evaluations: Sequence[DevEvaluation], model: str | None, *, dims: bool = False
) -> None:
    """Write evaluations as scripts/evaluate.py does: `path`, and the details beside it, of sets that are not large."""
    path.parent.mkdir(exist_ok=True)
    rows = [row for each in evaluations for row in result_rows(each, dims=dims)]
    write_details(path, (measurement(each, dims=dims) for each in evaluations if each.is_small))
    write_results(path, {"model": model}, rows)


def result_rows(evaluation: DevEvaluation, *, dims: bool) -> Iterator[ResultRow]:
    """A row of the results for each value of the axis."""
    data = evaluation.retrieval_set
    precision = "float32" if dims else None
    for value, metrics in evaluation.metrics.items():
        dim = value if dims else None
        yield ResultRow(data.name, len(data.queries), len(data.documents), dim, precision, dict(metrics))


def measurement(evaluation: DevEvaluation, *, dims: bool) -> Measurement:
    """The row of the largest value of the axis, whose details are kept."""
    rows = result_rows(evaluation, dims=dims)
    row = max(rows, key=lambda each: each.dim or 0)
    return row, evaluation.retrieval_set, evaluation.details
