"""Scores of models on tasks of mteb."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.results import TaskResult

from nestling.benchmarks.models import MtebEmbedder, MtebReranker
from nestling.benchmarks.tasks import BeirTask, load_task, require_rerankable
from nestling.files import replacing
from nestling.retrieval import open_candidates

# Metrics of retrieval tasks: name here -> name in mteb.
METRICS = {
    "nDCG@10": "ndcg_at_10",
    "MRR@10": "mrr_at_10",
    "Recall@100": "recall_at_100",
    "MAP@100": "map_at_100",
}


@dataclass(frozen=True)
class SplitScores:
    """Scores on one split and subset of a task.

    Attributes:
        name: TASK/SUBSET/SPLIT, or TASK/SPLIT for the default subset.
        queries: Number of queries; 0 in tasks other than retrieval.
        documents: Number of documents, likewise.
        metrics: Of a retrieval task the metrics of `METRICS`, of others the main score of mteb.
    """

    name: str
    queries: int
    documents: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TaskScores:
    """Scores on a task.

    Attributes:
        dim: Dimensions of the embeddings; None for a reranker.
        result: The result of mteb.
        splits: The scores to show, for each split and subset.
        truncated: Numbers of distinct queries and distinct documents of the task that were truncated.
    """

    dim: int | None
    result: TaskResult
    splits: list[SplitScores]
    truncated: tuple[int, int]

    def save(self, folder: Path) -> None:
        """Write the result in the format of mteb to TASK.json or TASK.DIM.json in a folder, which is created."""
        folder.mkdir(exist_ok=True)
        dim = "" if self.dim is None else f".{self.dim}"
        with replacing(folder / f"{self.result.task_name}{dim}.json") as partial:
            self.result.to_disk(partial)


def measure_embedder(model: MtebEmbedder, tasks: Sequence[AbsTask], dims: Sequence[int]) -> Iterator[TaskScores]:
    """Evaluate an embedder on every task at each dimension; texts are encoded once.

    Raises:
        ValueError: A task's data cannot be loaded.
    """
    model.cache_embeddings = len(dims) > 1
    for task in tasks:
        load_task(task)
        for dim in dims:
            model.dim = dim
            result = run_mteb(model, task)
            yield TaskScores(dim, result, list(splits(result, task)), model.truncated)
        model.reset()
        task.unload_data()


def measure_reranker(
    reranker: MtebReranker,
    tasks: Sequence[AbsTask],
    *,
    embedder: MtebEmbedder | None = None,
    first_stage: str | None = None,
    depth: int,
) -> Iterator[TaskScores]:
    """Evaluate a reranker on the candidates of every task, or on the first `depth` documents of a first stage.

    Args:
        reranker: The reranker.
        tasks: The tasks.
        embedder: The first stage, with the dimensions that it is set to.
        first_stage: Instead of an embedder: bm25 or a file, as in `open_candidates`; for BEIR folders only.
        depth: Number of candidates per query.

    Raises:
        ValueError: A task's data cannot be loaded, it is not a retrieval task, or there are neither candidates nor a
            first stage.
    """
    for task in tasks:
        require_rerankable(task)
        load_task(task)
        assert isinstance(task, AbsTaskRetrieval)
        add_candidates(task, embedder, first_stage, depth)
        result = run_mteb(reranker, task)
        yield TaskScores(None, result, list(splits(result, task)), reranker.truncated)
        reranker.reset()
        task.unload_data()


def add_candidates(task: AbsTaskRetrieval, embedder: MtebEmbedder | None, first_stage: str | None, depth: int) -> None:
    """Add the candidates of a first stage to a task, unless it has candidates."""
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    if all(split.get("top_ranked") for splits in task.dataset.values() for split in splits.values()):
        return
    if embedder is not None:
        with tempfile.TemporaryDirectory() as folder:
            run_mteb(embedder, task, folder)
            task.convert_to_reranking(folder, top_k=depth)
    elif first_stage is not None and isinstance(task, BeirTask):
        task.rerank(open_candidates(first_stage, task.data, depth))
    else:
        raise ValueError(
            f"--mteb {task.metadata.name}: it has no candidates to rerank; give the --model of a first stage (BM25 and "
            "files rank folders only)"
        )


def run_mteb(model: MtebEmbedder | MtebReranker, task: AbsTask, predictions: str | None = None) -> TaskResult:
    """Run mteb without its cache of earlier results."""
    results = mteb.evaluate(
        model,  # type: ignore[arg-type]  # the protocols of mteb include __init__
        task,
        cache=None,
        co2_tracker=False,
        encode_kwargs={"show_progress_bar": False},
        prediction_folder=predictions,
        show_progress_bar=False,
    )
    return results.task_results[0]


def splits(result: TaskResult, task: AbsTask) -> Iterator[SplitScores]:
    """The scores of a result for each split and subset."""
    for split, subsets in result.scores.items():
        for scores in subsets:
            subset = scores["hf_subset"]
            name = "/".join([result.task_name, *([] if subset == "default" else [subset]), split])
            if isinstance(task, AbsTaskRetrieval):
                data = task.dataset[subset][split]
                metrics = {ours: float(scores[theirs]) for ours, theirs in METRICS.items()}
                yield SplitScores(name, len(data["queries"]), len(data["corpus"]), metrics)
            else:
                yield SplitScores(name, 0, 0, {task.metadata.main_score: float(scores["main_score"])})
