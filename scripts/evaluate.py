"""Measure an embedding model, BM25, a TREC run or a reranker of their results on retrieval sets in the BEIR layout.

    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --split test --dims 384,128,64
    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --embedding_precision float32,int8,binary
    python scripts/evaluate.py --model runs/my-model/final --data data/my-set --output after.json --details true
    python scripts/evaluate.py --first_stage bm25 --data data/my-set
    python scripts/evaluate.py --first_stage bm25 --data data/my-set --reranker runs/my-reranker/final --depth 100
    python scripts/evaluate.py --model runs/my-model/final --mteb SciFact,data/my-set

With a reranker the first stage's order is measured, the reranker's, and both fused. Equal scores
are averaged over every order, gain is linear, a document is its title and text.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nestling.config import (
    EvaluateConfig,
    details_path,
    new_outputs,
    parse_config,
    require,
    require_dims,
    require_extra,
    require_model,
    require_new,
    require_unique,
    run,
)
from nestling.gpu import best_device, computing_dtype, resolve_precision

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from nestling.benchmarks.task_scores import TaskScores
    from nestling.models.embedder import Embedder
    from nestling.records import RetrievalSet
    from nestling.retrieval import Candidates, EncodedSet
    from nestling.retrieval.result_files import Measurement, ResultRow


def main() -> None:
    config = parse_config(EvaluateConfig, __doc__)
    with new_outputs(*(("--output", path) for path in outputs(config))):
        evaluate(config)


def evaluate(config: EvaluateConfig) -> None:
    if config.trust_remote_code:
        from nestling.models.remote_code import trust_code

        trust_code(config.model, config.reranker)
    dims = choose_dims(config)
    if config.reranker is not None:
        require_model(config.reranker, f"--reranker {config.reranker}: no such directory")
    first_stage = read_first_stage(config)
    config = replace(config, precision=resolve_precision(config.precision))

    from nestling.records import load_retrieval_set
    from nestling.retrieval.result_files import results_table, write_details, write_results

    tasks = open_tasks(config)
    sets = [load_retrieval_set(folder, config.split) for folder in config.data]
    require_unique("data", [each.name for each in sets])
    for folder, each in zip(config.data, sets, strict=True):
        report_set(folder, each)
    measurements: Iterator[Measurement] = iter(())
    if sets and config.reranker:
        measurements = measure_reranker(config, sets, dims)
    elif sets:
        measurements = measure_model(config, sets, dims) if config.model else measure_first_stage(first_stage, sets)
    if config.output and config.details:
        rows = write_details(Path(config.output), measurements)
    else:
        rows = [row for row, *_ in measurements]
    for result in measure_tasks(config, tasks, dims) if tasks else ():
        queries, documents = result.truncated
        print(f"{result.result.task_name} (mteb): {queries:,} queries and {documents:,} documents cut")
        if config.output:  # at once: a later task may fail
            result.save(mteb_folder(Path(config.output)))
        rows += task_rows(result)
    print(results_table(rows))
    if config.output:
        require_new("--output", Path(config.output))  # another program may have written it meanwhile
        write_results(Path(config.output), asdict(config), rows)


def report_set(folder: str, data: "RetrievalSet") -> None:
    """Print whose judgements those of a set are, if its folder says so, and what was dropped in reading it."""
    from nestling.records.judged_by import judged_by

    judges = judged_by(folder)
    if judges is not None:
        print(f"{data.name}: {judges}")
    for drop in data.summary.drops:
        print(f"dropped {drop.count:,}: {drop.reason} (first at {drop.example})")


def outputs(config: EvaluateConfig) -> list[Path]:
    """The files and folders that are to be written."""
    if config.output is None:
        return []
    output = Path(config.output)
    return [output, *[mteb_folder(output)] * bool(config.mteb), *[details_path(output)] * config.details]


def mteb_folder(output: Path) -> Path:
    """Folder for results in mteb's own format, beside `output`."""
    return output.with_suffix(".mteb")


def choose_dims(config: EvaluateConfig) -> list[int]:
    """The dimensions to measure, from the settings or the model's configuration; no weights are read."""
    if config.model is None:
        return []
    require_model(config.model, f"--model {config.model}: no such directory")
    from nestling.models.embedder import read_dims, require_lengths

    require_lengths(
        config.model, query_max_length=config.query_max_length, document_max_length=config.document_max_length
    )
    known = read_dims(config.model)
    require_dims(config.dims, limit=known[0])
    return config.dims or known


def read_first_stage(config: EvaluateConfig) -> dict[str, dict[str, float]] | None:
    """The run of a TREC run file; None for BM25, models, and where the file gives the candidates of a reranker."""
    if config.first_stage is None or config.first_stage == "bm25":
        return None
    path = Path(config.first_stage)
    require(path.is_file(), f"--first_stage {path}: no such file; expected bm25 or a TREC run file")
    if config.reranker is not None:
        return None  # `open_candidates` reads the file for each set
    from nestling.retrieval import read_run

    return read_run(path)


def measure_model(config: EvaluateConfig, sets: "list[RetrievalSet]", dims: list[int]) -> "Iterator[Measurement]":
    """Encode each set once, then measure every dimension and embedding precision."""
    from nestling.retrieval import embedder_details, relevant_ranks_and_scores
    from nestling.retrieval.result_files import result_row

    embedder = load_embedder(config)
    for each in sets:
        encoded = encode(embedder, each, config)
        print(f"{each.name}: queries: {encoded.query_stats}", file=sys.stderr)
        print(f"{each.name}: documents: {encoded.document_stats}", file=sys.stderr)
        truncated = (encoded.query_stats.truncated, encoded.document_stats.truncated)
        own = embedder.max_seq_length
        limits = (config.query_max_length or own, config.document_max_length or own)
        print(f"{each.name}:")
        print(f"  {len(each.queries):,} queries, {truncated[0]:,} cut to {limits[0]} tokens")
        print(f"  {len(each.documents):,} documents, {truncated[1]:,} cut to {limits[1]} tokens")
        for dim in dims:
            for embedding_precision in config.embedding_precision:
                ranks, scores = relevant_ranks_and_scores(encoded, dim, embedding_precision)
                details = partial(embedder_details, encoded, each, ranks, scores, dim, embedding_precision)
                yield result_row(each, ranks, dim, embedding_precision, (*truncated, *limits)), each, details


def load_embedder(config: EvaluateConfig) -> "Embedder":
    from nestling.models.embedder import Embedder

    prompts = {"query_prompt": config.query_prompt, "document_prompt": config.document_prompt}
    return cast(Embedder, load(Embedder, config.model, config, **prompts))


def load(kind: Any, model: str | None, config: EvaluateConfig, **settings: Any) -> Any:
    """Load an `Embedder` or `Reranker` (`kind`), onto the GPU if there is one."""
    settings |= {"precision": computing_dtype(config.precision), "attn_implementation": config.attn_implementation}
    return kind.from_pretrained(model, **settings).to(best_device())


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


def measure_reranker(config: EvaluateConfig, sets: "list[RetrievalSet]", dims: list[int]) -> "Iterator[Measurement]":
    """Measure the candidates in the first stage's order, in the reranker's, and with both fused."""
    from nestling.models.reranker import Reranker
    from nestling.models.scoring import ScoringStats
    from nestling.retrieval import candidate_details, ranks_in_candidates, rerank
    from nestling.retrieval.choice import fusion_of
    from nestling.retrieval.result_files import result_row

    assert config.reranker is not None
    fuse = fusion_of(config.rerank_weight)
    lists: Iterable[tuple[RetrievalSet, Candidates]] = candidate_lists(config, sets, dims[0] if dims else None)
    if config.model is None:
        lists = list(lists)  # what is wrong with a file is said before the weights are read
    reranker = load(Reranker, config.reranker, config)
    for data, candidates in lists:
        stats = ScoringStats()
        shown = sys.stderr.isatty()
        scores = rerank(reranker, data, candidates, instruction=config.instruction, progress=shown, stats=stats)
        print(f"{data.name}:\n  {candidates}\n  {stats}")
        orders = {"first stage": candidates.first_stage_scores, "reranked": scores}
        if candidates.scores is not None:
            orders["fused"] = fuse(candidates.scores, scores)
        for order, values in orders.items():
            ranks = ranks_in_candidates(values, candidates, data)
            row = replace(result_row(data, ranks), order=order, truncated_documents=stats.truncated_documents)
            yield row, data, partial(candidate_details, values, candidates, data, ranks)


def candidate_lists(
    config: EvaluateConfig, sets: "list[RetrievalSet]", dim: int | None
) -> "Iterator[tuple[RetrievalSet, Candidates]]":
    """Each set with the documents to rerank: the nearest of a model, those of BM25, or those of a file."""
    from nestling.retrieval import Candidates, open_candidates, search_top

    embedder = load_embedder(config) if config.model else None
    for each in sets:
        if embedder is None:
            assert config.first_stage is not None
            yield each, open_candidates(config.first_stage, each, config.depth, progress=True)
        else:
            run = search_top(encode(embedder, each, config), each, config.depth, dim=dim)
            yield each, Candidates.from_run(run, each, config.depth)


def measure_first_stage(run: dict[str, dict[str, float]] | None, sets: "list[RetrievalSet]") -> "Iterator[Measurement]":
    """Measure a run, by default that of BM25."""
    from nestling.retrieval import bm25_run, check_run, drop_own_documents, qrels_of, run_details
    from nestling.retrieval.metrics import ranks_in_run
    from nestling.retrieval.result_files import result_row

    for each in sets:
        print(f"{each.name}:\n  {len(each.queries):,} queries\n  {len(each.documents):,} documents")
        if run is not None:
            print(*(f"  {remark}\n" for remark in check_run(run, each)), sep="", end="")
        measured, own_documents = drop_own_documents(run or bm25_run(each, progress=True), each)
        if own_documents:
            print(f"  {own_documents:,} listed documents have the id of their query and are left out")
        ranks = ranks_in_run(measured, qrels_of(each))
        yield result_row(each, ranks), each, partial(run_details, measured, each, ranks)


def open_tasks(config: EvaluateConfig) -> "list[AbsTask]":
    """The mteb tasks to measure; loads the data of the first, to report missing data before the model is loaded."""
    if not config.mteb:
        return []
    require_extra("--mteb", "mteb", "mteb")
    from nestling.benchmarks.tasks import BeirTask, load_task, open_task, require_names, require_rerankable

    tasks = [open_task(name, config.split) for name in config.mteb]
    require_names(tasks)
    for name, task in zip(config.mteb, tasks, strict=True):
        if config.reranker:
            require_rerankable(task)
        if isinstance(task, BeirTask):
            report_set(name, task.data)
    load_task(tasks[0])
    return tasks


def measure_tasks(config: EvaluateConfig, tasks: "list[AbsTask]", dims: list[int]) -> "Iterator[TaskScores]":
    """Run a model through mteb at every dimension, or a reranker over candidates."""
    from nestling.benchmarks.models import MtebEmbedder, MtebReranker
    from nestling.benchmarks.task_scores import measure_embedder, measure_reranker
    from nestling.models.reranker import Reranker

    options: dict[str, Any] = {"instruction": config.instruction, "progress": sys.stderr.isatty()}
    embedder = None
    if config.model:
        lengths = {name: getattr(config, name) for name in ("query_max_length", "document_max_length")}
        embedder = MtebEmbedder(load_embedder(config), dim=dims[0], **lengths, **options)
    if config.reranker:
        reranker = MtebReranker(load(Reranker, config.reranker, config), **options)
        return measure_reranker(reranker, tasks, embedder=embedder, first_stage=config.first_stage, depth=config.depth)
    assert embedder is not None
    return measure_embedder(embedder, tasks, dims)


def task_rows(measured: "TaskScores") -> "list[ResultRow]":
    """The table rows of a task that mteb measured, one for each split."""
    from nestling.retrieval.result_files import ResultRow

    embedding_precision, order = (None, "reranked") if measured.dim is None else ("float32", None)
    return [
        ResultRow(
            f"{each.name} (mteb)",
            each.queries,
            each.documents,
            measured.dim,
            embedding_precision,
            each.metrics,
            *measured.truncated,
            order=order,
        )
        for each in measured.splits
    ]


if __name__ == "__main__":
    run(main)
