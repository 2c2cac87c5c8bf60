"""Measure an embedding model, BM25, a TREC run or a reranker of their results on retrieval sets in the BEIR layout.

    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --split test --dims 384,128,64
    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --embedding_precision float32,int8,binary
    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --output after.json --details true
    python scripts/evaluate.py --first_stage bm25 --data data/my-set
    python scripts/evaluate.py --first_stage bm25 --data data/my-set --reranker runs/my-reranker/final --depth 100
    python scripts/evaluate.py --model runs/my-model/final --mteb SciFact,data/my-set

With a reranker the first stage's order is measured, the reranker's, and both fused by reciprocal ranks. Equal scores
are averaged over every order, gain is linear, a document is its title and text.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import __version__
from nestling.config import (
    EvaluateConfig,
    details_path,
    parse_config,
    require,
    require_dims,
    require_extra,
    require_model,
    require_new,
    run,
)

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from nestling.benchmarks.task_scores import TaskScores
    from nestling.models.embedder import Embedder
    from nestling.records import RetrievalSet
    from nestling.retrieval import Candidates, EncodedSet, RetrievalDetails
    from nestling.retrieval.metrics import RelevantRanks

    # A row, the set that was measured, and what each of its queries got.
    Retrieved = tuple["Row", RetrievalSet, Callable[[], RetrievalDetails]]


@dataclass(frozen=True)
class Row:
    """One line of the table: a set measured in one way."""

    data: str
    queries: int
    documents: int
    dim: int | None
    embedding_precision: str | None
    metrics: dict[str, float]
    truncated_queries: int = 0
    truncated_documents: int = 0
    order: str | None = None


def main() -> None:
    config = parse_config(EvaluateConfig, __doc__)
    check_output(config)
    dims = choose_dims(config)
    if config.reranker is not None:
        require_model(config.reranker, f"--reranker {config.reranker}: no such directory")
    first_stage = read_first_stage(config)

    from nestling.records import load_retrieval_set

    tasks = open_tasks(config)
    sets = [load_retrieval_set(folder, config.split) for folder in config.data]
    for each in sets:
        report_drops(each)
    found: Iterator[Retrieved] = iter(())
    if sets and config.reranker:
        found = measure_reranker(config, sets, dims)
    elif sets:
        found = measure_model(config, sets, dims) if config.model else measure_first_stage(first_stage, sets)
    rows = write_details(Path(config.output), found) if config.output and config.details else [row for row, *_ in found]
    for result in measure_tasks(config, tasks, dims) if tasks else ():
        queries, documents = result.truncated
        print(f"{result.result.task_name} (mteb): {queries:,} queries and {documents:,} documents cut")
        if config.output:  # at once: a later task may fail
            result.save(mteb_folder(Path(config.output)))
        rows += task_rows(result)
    print_table(rows)
    if config.output:
        write_json(Path(config.output), config, rows)


def report_drops(data: "RetrievalSet") -> None:
    for drop in data.summary.drops:
        print(f"dropped {drop.count:,}: {drop.reason} (first at {drop.example})")


def check_output(config: EvaluateConfig) -> None:
    """Refuse a file that exists, and one that could not be written, before anything is computed."""
    if config.output is None:
        return
    output = Path(config.output)
    beside = [mteb_folder(output)] * bool(config.mteb) + [details_path(output)] * config.details
    for path in [output, *beside]:
        require_new("--output", path)


def mteb_folder(output: Path) -> Path:
    """Where results in mteb's own form come, beside ours."""
    return output.with_suffix(".mteb")


def choose_dims(config: EvaluateConfig) -> list[int]:
    """The dimensions to measure, after a look at the model's configuration; no weights are read."""
    if config.model is None:
        return []
    require_model(config.model, f"--model {config.model}: no such directory")
    from transformers import AutoConfig

    from nestling.models.embedder import read_model_files

    try:
        model = AutoConfig.from_pretrained(config.model, subfolder=read_model_files(config.model).subfolder)
    except OSError:
        raise ValueError(
            f"--model {config.model}: neither a directory with a config.json nor a model of the hub"
        ) from None
    keys = model.to_dict()
    limit = keys.get("max_position_embeddings") or sys.maxsize
    for name in ("query_max_length", "document_max_length"):
        length = getattr(config, name)
        require(length <= limit, f"--{name} {length}: {config.model} reads at most {limit} tokens; give a lower one")
    dims = config.dims or sorted({model.hidden_size, *(keys.get("matryoshka_dimensions") or [])}, reverse=True)
    require_dims(dims, limit=model.hidden_size)
    return dims


def read_first_stage(config: EvaluateConfig) -> dict[str, dict[str, float]] | None:
    """The lists of a run file; None for BM25 and models."""
    if config.first_stage is None or config.first_stage == "bm25":
        return None
    path = Path(config.first_stage)
    require(path.is_file(), f"--first_stage {path}: no such file; expected bm25 or a TREC run file")
    if config.reranker is not None:
        return None  # the lists are opened for each set
    from nestling.retrieval import read_run

    return read_run(path)


def measure_model(config: EvaluateConfig, sets: "list[RetrievalSet]", dims: list[int]) -> "Iterator[Retrieved]":
    """Encode each set once, then measure every dimension and embedding precision."""
    from nestling.models.embedder import Embedder
    from nestling.retrieval import embedder_details, relevant_ranks_and_scores

    embedder = load(Embedder, config.model, config.precision)
    for each in sets:
        encoded = encode(embedder, each, config)
        print(f"{each.name}: queries: {encoded.query_stats}", file=sys.stderr)
        print(f"{each.name}: documents: {encoded.document_stats}", file=sys.stderr)
        truncated = (encoded.query_stats.truncated, encoded.document_stats.truncated)
        print(f"{each.name}:")
        print(f"  {len(each.queries):,} queries, {truncated[0]:,} cut to {config.query_max_length} tokens")
        print(f"  {len(each.documents):,} documents, {truncated[1]:,} cut to {config.document_max_length} tokens")
        for dim in dims:
            for embedding_precision in config.embedding_precision:
                ranks, scores = relevant_ranks_and_scores(encoded, dim, embedding_precision)
                ranking = partial(embedder_details, encoded, each, ranks, scores, dim, embedding_precision)
                yield make_row(each, ranks, dim, embedding_precision, truncated), each, ranking


def load(kind: Any, model: str | None, precision: str) -> Any:
    """An embedder or reranker on the device."""
    import torch

    loaded = kind.from_pretrained(model, precision=torch.bfloat16 if precision == "bf16" else torch.float32)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def encode(embedder: "Embedder", data: "RetrievalSet", config: EvaluateConfig) -> "EncodedSet":
    from nestling.retrieval import encode_set

    return encode_set(
        embedder,
        data,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        instruction=config.instruction,
        progress=sys.stderr.isatty(),
    )


def measure_reranker(config: EvaluateConfig, sets: "list[RetrievalSet]", dims: list[int]) -> "Iterator[Retrieved]":
    """The first stage's order of the candidates, the reranker's, and both fused."""
    from nestling.models.reranker import Reranker
    from nestling.models.scoring import ScoringStats
    from nestling.retrieval import candidate_details, ranks_in_candidates, reciprocal_rank_fusion, rerank

    assert config.reranker is not None
    reranker = load(Reranker, config.reranker, config.precision)
    for data, candidates in candidate_lists(config, sets, dims[0] if dims else None):
        stats = ScoringStats()
        shown = sys.stderr.isatty()
        scores = rerank(reranker, data, candidates, instruction=config.instruction, progress=shown, stats=stats)
        print(f"{data.name}:\n  {candidates}\n  {stats}")
        orders = {"first stage": candidates.first_stage_scores, "reranked": scores}
        if candidates.scores is not None:
            orders["fused"] = reciprocal_rank_fusion(candidates.scores, scores)
        for order, values in orders.items():
            ranks = ranks_in_candidates(values, candidates, data)
            row = replace(make_row(data, ranks), order=order, truncated_documents=stats.truncated_documents)
            yield row, data, partial(candidate_details, values, candidates, data, ranks)


def candidate_lists(
    config: EvaluateConfig, sets: "list[RetrievalSet]", dim: int | None
) -> "Iterator[tuple[RetrievalSet, Candidates]]":
    """Each set with the documents to rerank: a model's nearest, BM25's, or those of a file."""
    from nestling.models.embedder import Embedder
    from nestling.retrieval import Candidates, open_candidates, search_top

    embedder = load(Embedder, config.model, config.precision) if config.model else None
    for each in sets:
        if embedder is None:
            assert config.first_stage is not None
            yield each, open_candidates(config.first_stage, each, config.depth)
        else:
            run = search_top(encode(embedder, each, config), each, config.depth, dim=dim)
            yield each, Candidates.from_run(run, each, config.depth)


def measure_first_stage(lists: dict[str, dict[str, float]] | None, sets: "list[RetrievalSet]") -> "Iterator[Retrieved]":
    """Measure BM25, or the lists of a run file."""
    from nestling.retrieval import bm25_run, check_run, qrels_of, run_details
    from nestling.retrieval.metrics import ranks_in_run

    for each in sets:
        print(f"{each.name}:\n  {len(each.queries):,} queries\n  {len(each.documents):,} documents")
        if lists is not None:
            print(*(f"  {remark}\n" for remark in check_run(lists, each)), sep="", end="")
        listed = lists or bm25_run(each)
        ranks = ranks_in_run(listed, qrels_of(each))
        yield make_row(each, ranks), each, partial(run_details, listed, each, ranks)


def open_tasks(config: EvaluateConfig) -> "list[AbsTask]":
    """What mteb is to measure; the data of the first is loaded, to say before a model is what cannot be had."""
    if not config.mteb:
        return []
    require_extra("--mteb", "mteb", "mteb")
    from nestling.benchmarks.tasks import BeirTask, load_task, open_task, require_names, require_rerankable

    tasks = [open_task(name, config.split) for name in config.mteb]
    require_names(tasks)
    for task in tasks:
        if config.reranker:
            require_rerankable(task)
        if isinstance(task, BeirTask):
            report_drops(task.data)
    load_task(tasks[0])
    return tasks


def measure_tasks(config: EvaluateConfig, tasks: "list[AbsTask]", dims: list[int]) -> "Iterator[TaskScores]":
    """Run a model through mteb at every dimension, or a reranker over candidates."""
    from nestling.benchmarks.models import MtebEmbedder, MtebReranker
    from nestling.benchmarks.task_scores import measure_embedder, measure_reranker
    from nestling.models.embedder import Embedder
    from nestling.models.reranker import Reranker

    told: dict[str, Any] = {"instruction": config.instruction, "progress": sys.stderr.isatty()}
    embedder = None
    if config.model:
        lengths = {name: getattr(config, name) for name in ("query_max_length", "document_max_length")}
        embedder = MtebEmbedder(load(Embedder, config.model, config.precision), dim=dims[0], **lengths, **told)
    if config.reranker:
        reranker = MtebReranker(load(Reranker, config.reranker, config.precision), **told)
        return measure_reranker(reranker, tasks, embedder=embedder, first_stage=config.first_stage, depth=config.depth)
    assert embedder is not None
    return measure_embedder(embedder, tasks, dims)


def task_rows(measured: "TaskScores") -> list[Row]:
    """The lines that show what mteb found."""
    embedding_precision, order = (None, "reranked") if measured.dim is None else ("float32", None)
    return [
        Row(
            f"{each.name} (mteb)",
            each.queries,
            each.documents,
            measured.dim,
            embedding_precision,
            each.metrics,
            *measured.truncated,
            order,
        )
        for each in measured.splits
    ]


def make_row(
    data: "RetrievalSet",
    ranks: "RelevantRanks",
    dim: int | None = None,
    embedding_precision: str | None = None,
    truncated: tuple[int, int] = (0, 0),
) -> Row:
    from nestling.retrieval.metrics import mean_metrics

    return Row(
        data.name, len(data.queries), len(data.documents), dim, embedding_precision, mean_metrics(ranks), *truncated
    )


def print_table(rows: list[Row]) -> None:
    """One row a set and dimension and embedding precision, or order."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    width = max(len(row.data) for row in rows)
    reranked = rows[0].order is not None
    heading = f"{'order':11}" if reranked else f"{'dim':>5}  {'embedding_precision':19}"
    print(f"\n{'':{width}}  {heading}  " + "  ".join(f"{name:>10}" for name in metrics))
    for row in rows:
        values = "  ".join(f"{row.metrics.get(name, math.nan):10.4f}" for name in metrics)
        what = f"{row.order:11}" if reranked else f"{row.dim or '-':>5}  {row.embedding_precision or '-':19}"
        print(f"{row.data:{width}}  {what}  {values}")


def write_details(output: Path, found: "Iterable[Retrieved]") -> list[Row]:
    """The rows, once a line for each query of each of them is in a file beside the results."""
    from nestling.files import write_jsonl
    from nestling.retrieval import detail_lines

    rows: list[Row] = []

    def lines() -> Iterator[dict[str, Any]]:
        for row, data, ranking in found:
            rows.append(row)
            place = {
                "data": row.data,
                "dim": row.dim,
                "embedding_precision": row.embedding_precision,
                "order": row.order,
            }
            yield from ({**place, **line} for line in detail_lines(ranking(), data))

    write_jsonl(details_path(output), lines())
    return rows


def write_json(path: Path, config: EvaluateConfig, rows: list[Row]) -> None:
    """Write settings and results; never over an existing file."""
    content: dict[str, Any] = {
        "nestling": __version__,
        "config": asdict(config),
        "results": [asdict(row) for row in rows],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(text + "\n")


if __name__ == "__main__":
    run(main)
