"""Run models through tasks of mteb."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.results import TaskResult

from nestling.benchmarks.models import MtebEmbedder, MtebReranker
from nestling.benchmarks.tasks import BeirTask, load_task, require_orderable
from nestling.retrieval.candidates import open_candidates

# Figures of retrieval tasks: our names of what mteb calls otherwise.
FIGURES = {
    "nDCG@10": "ndcg_at_10",
    "MRR@10": "mrr_at_10",
    "Recall@100": "recall_at_100",
    "MAP@100": "map_at_100",
}


@dataclass(frozen=True)
class Figures:
    """What mteb found on one split and subset of a task.

    Attributes:
        name: Of task, subset if it has several, and split.
        queries: How many were measured; 0 in tasks that are no retrieval.
        documents: How many there are; likewise.
        metrics: Of a retrieval task those that are measured elsewhere, of others mteb's main score.
    """

    name: str
    queries: int
    documents: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What mteb found on a task.

    Attributes:
        dim: Of the embeddings; None for a reranker.
        result: In mteb's own form.
        figures: What of it is shown.
        truncated: Queries and documents of the task that were cut, of equal ones one.
    """

    dim: int | None
    result: TaskResult
    figures: list[Figures]
    truncated: tuple[int, int]

    def save(self, folder: Path) -> None:
        """Write the result as mteb does, to TASK.json or TASK.DIM.json in a folder, which is made."""
        folder.mkdir(exist_ok=True)
        dim = "" if self.dim is None else f".{self.dim}"
        self.result.to_disk(folder / f"{self.result.task_name}{dim}.json")


def measure_embedder(model: MtebEmbedder, tasks: Sequence[AbsTask], dims: Sequence[int]) -> Iterator[Measured]:
    """Every task at each dimension; its texts are encoded once.

    Raises:
        ValueError: A task's data cannot be loaded.
    """
    model.remember = len(dims) > 1
    for task in tasks:
        load_task(task)
        for dim in dims:
            model.dim = dim
            result = run(model, task)
            yield Measured(dim, result, list(figures(result, task)), model.truncated)
        model.forget()
        task.unload_data()


def measure_reranker(
    reranker: MtebReranker,
    tasks: Sequence[AbsTask],
    *,
    embedder: MtebEmbedder | None = None,
    first_stage: str | None = None,
    depth: int,
) -> Iterator[Measured]:
    """Order candidates of every task anew: those that the task has, or the first `depth` documents of a first stage.

    Args:
        reranker: The model.
        tasks: The tasks.
        embedder: The first stage, at the dimension that it is set to.
        first_stage: In its place bm25 or a file, as in `open_candidates`; ranks BEIR folders only.
        depth: How many documents it hands on.

    Raises:
        ValueError: A task's data cannot be loaded, it is no retrieval, or nothing ranks its documents first.
    """
    for task in tasks:
        require_orderable(task)
        load_task(task)
        assert isinstance(task, AbsTaskRetrieval)
        rank_first(task, embedder, first_stage, depth)
        result = run(reranker, task)
        yield Measured(None, result, list(figures(result, task)), reranker.truncated)
        reranker.forget()
        task.unload_data()


def rank_first(task: AbsTaskRetrieval, embedder: MtebEmbedder | None, first_stage: str | None, depth: int) -> None:
    """Give a task candidates, unless it has them."""
    task.convert_v1_dataset_format_to_v2(num_proc=None)
    if all(split.get("top_ranked") for splits in task.dataset.values() for split in splits.values()):
        return
    if embedder is not None:
        with tempfile.TemporaryDirectory() as folder:
            run(embedder, task, folder)
            task.convert_to_reranking(folder, top_k=depth)
    elif first_stage is not None and isinstance(task, BeirTask):
        task.rerank(open_candidates(first_stage, task.data, depth))
    else:
        raise ValueError(
            f"--mteb {task.metadata.name}: it has no candidates to rerank; give the --model of a first stage (BM25 and "
            "files rank folders only)"
        )


def run(model: MtebEmbedder | MtebReranker, task: AbsTask, predictions: str | None = None) -> TaskResult:
    """mteb's result; nothing of earlier runs is used."""
    found = mteb.evaluate(
        model,  # type: ignore[arg-type]  # mteb's protocols ask for its own __init__, and are told by methods alone
        task,
        cache=None,
        co2_tracker=False,
        encode_kwargs={"show_progress_bar": False},
        prediction_folder=predictions,
        show_progress_bar=False,
    )
    return found.task_results[0]


def figures(result: TaskResult, task: AbsTask) -> Iterator[Figures]:
    """What is shown of a result."""
    for split, found in result.scores.items():
        for scores in found:
            subset = scores["hf_subset"]
            name = "/".join([result.task_name, *([] if subset == "default" else [subset]), split])
            if isinstance(task, AbsTaskRetrieval):
                data = task.dataset[subset][split]
                metrics = {ours: float(scores[theirs]) for ours, theirs in FIGURES.items()}
                yield Figures(name, len(data["queries"]), len(data["corpus"]), metrics)
            else:
                yield Figures(name, 0, 0, {task.metadata.main_score: float(scores["main_score"])})
