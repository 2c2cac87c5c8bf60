"""The inputs of scripts/mine.py, opened according to its settings: records, pool, retrievers, relevance judgements."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nestling.config import MineConfig, require
from nestling.config.prompts import require_no_instructions
from nestling.distributed.launch import start_ranks
from nestling.distributed.ranks import rank_zero_first
from nestling.gpu import computing_dtype
from nestling.mining.lists import Lists
from nestling.mining.nearest import nearest
from nestling.mining.own_documents import own_documents, own_documents_line
from nestling.mining.pool import Pool, flat_values, open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.relevance_judgements import RelevanceJudgements
from nestling.mining.retrievers import (
    Bm25Retriever,
    DenseRetriever,
    NearestSearch,
    RecordNegatives,
    Retriever,
    RunFileRetriever,
    query_ids,
)
from nestling.models.embedder import Embedder, read_width
from nestling.records.beir import is_beir
from nestling.records.load import load_records
from nestling.records.table import RecordTable
from nestling.retrieval.first_stage import read_run

# Last parts of paths that do not say which model it is, and names that other scores have.
GENERIC = ("final", "model", "0_Transformer", "bm25", "given", "judge", "ensemble")


@dataclass(frozen=True)
class MiningTask:
    """The data to mine, and the device to mine on.

    Args:
        table: The records.
        query_set: Their distinct queries.
        pool: The documents.
        own: Of each query the documents that have its id in a BEIR folder, which are no candidates of it.
        device: Where models run and ranks communicate.
        main: Whether this rank prints and writes.
    """

    table: RecordTable
    query_set: QuerySet
    pool: Pool
    own: Lists
    device: torch.device
    main: bool

    def say(self, *lines: object) -> None:
        """Print lines on the main rank."""
        if self.main:
            print(*lines, sep="\n", flush=True)


def open_task(config: MineConfig) -> MiningTask:
    """Start the ranks and read the data. Raises ValueError for data that cannot be mined."""
    accelerator = start_ranks()
    with rank_zero_first():  # the main process fills the cache of Arrow files
        progress = accelerator.is_main_process
        table = load_records(
            config.data,
            split=config.split,
            instruction=config.instruction,
            columns=config.columns,
            progress=progress,
        )
        require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")
        require_no_instructions(config.query_prompt, config.data, table.summary.instructions.rows)
        query_set = QuerySet.of(table)
        own_corpus = Path(config.data) if is_beir(Path(config.data)) else None
        corpus = own_corpus if config.corpus is None else Path(config.corpus)
        given = [flat_values(table, "negative_ids")] if "given" in config.retrievers else []
        pool = open_pool(table, corpus, np.concatenate([query_set.known_positives.values, *given]), progress=progress)
        own = own_documents(Path(config.data), query_set, pool)
    task = MiningTask(table, query_set, pool, own, accelerator.device, accelerator.is_main_process)
    task.say(table.summary, f"{len(query_set):,} different queries", pool)
    if len(own.values):
        task.say(own_documents_line(own))
    replaced = table.summary.negatives
    if replaced and "given" not in config.retrievers:
        task.say(
            f"the {replaced:,} negatives that rows have are replaced; name the retriever given to judge them again"
        )
    return task


def open_retrievers(config: MineConfig, task: MiningTask) -> dict[str, Retriever]:
    """By name: the retrievers that search, then the scorer if it is not one of them."""
    specs = list(config.retrievers)
    if config.scorer not in (None, "judge", *specs):
        specs.append(str(config.scorer))
    names = dict(zip(specs, short_names(specs), strict=True))
    # Files first: what is wrong with one is said before an embedder has read the corpus.
    order = sorted(specs, key=lambda spec: not Path(spec).is_file())
    opened = {spec: open_retriever(config, task, spec, names[spec]) for spec in order}
    return {names[spec]: opened[spec] for spec in specs}


def open_retriever(config: MineConfig, task: MiningTask, spec: str, name: str) -> Retriever:
    """The retriever for an item of the setting `retrievers`: bm25, given, a run file or an embedder."""
    if spec == "bm25":
        return Bm25Retriever(task.query_set, task.pool, task.device, progress=task.main)
    if spec == "given":
        return RecordNegatives(task.query_set, task.pool, task.table)
    if Path(spec).is_file():
        folder = Path(config.data)
        require(is_beir(folder), f"{spec}: a run file needs query ids; give --data as a folder in the BEIR layout")
        run_file = RunFileRetriever(name, read_run(spec), query_ids(folder, task.query_set), task.pool)
        task.say(f"{name}: lists nothing for {run_file.missing:,} of {len(task.query_set):,} queries")
        return run_file
    find_nearest: NearestSearch = nearest
    if config.index is not None:
        from nestling.mining.faiss_index import FaissIndex  # here, since it needs FAISS

        find_nearest = index = FaissIndex(config.index, config.index_search)
        index.require_documents(read_width(spec), task.pool.size)
    embedder = Embedder.from_pretrained(
        spec,
        precision=computing_dtype(config.precision),
        attn_implementation=config.attn_implementation,
        query_prompt=config.query_prompt,
        document_prompt=config.document_prompt,
    )
    dense = DenseRetriever.encode(
        name,
        embedder.to(task.device),
        task.query_set,
        task.pool,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        progress=task.main and sys.stderr.isatty(),
    )
    task.say(*(f"{name}: {note}" for note in dense.notes))
    return replace(dense, find_nearest=find_nearest)


def read_judgements(config: MineConfig, task: MiningTask) -> RelevanceJudgements | None:
    """The relevance judgements that count false negatives, if any are given."""
    if config.judgements is None:
        return None
    judgements = RelevanceJudgements.read(config.judgements, config.split, task.query_set, task.pool)
    task.say(f"{config.judgements} judges {judgements.queries.sum():,} of the queries")
    return judgements


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many of its folders as tell it from the others; the paths are different.

    A generic part, or one that is the name of other scores, has a folder at least.
    """
    most = 1 + max(path.count("/") for path in paths)
    names = [last_parts(path, 2 if last_parts(path, 1) in GENERIC else 1) for path in paths]
    for count in range(2, most + 1):
        names = [
            last_parts(path, count) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
        ]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def last_parts(path: str, count: int) -> str:
    return "/".join(path.rstrip("/").split("/")[-count:])
