"""What scripts/mine.py mines for, where, and with what: records, documents, retrievers, opened as its settings say."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nestling.config import MineConfig, require
from nestling.distributed.launch import start_ranks
from nestling.mining.judgements import Judgements
from nestling.mining.mined import names_of
from nestling.mining.pool import Pool, flat_values, open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrievers import Bm25, Dense, Given, Retriever, RunFile, query_ids
from nestling.models.embedder import Embedder
from nestling.records.beir import is_beir
from nestling.records.load import load_records
from nestling.records.table import RecordTable
from nestling.retrieval import read_run


@dataclass(frozen=True)
class Task:
    """What is mined for, and where.

    Args:
        table: The records.
        asked: Their distinct queries.
        pool: The documents.
        device: Where models compute and ranks communicate.
        main: Whether this rank prints and writes.
    """

    table: RecordTable
    asked: QuerySet
    pool: Pool
    device: torch.device
    main: bool

    def say(self, *lines: object) -> None:
        if self.main:
            print(*lines, sep="\n", flush=True)


def open_task(config: MineConfig) -> Task:
    """Start the ranks and read the data."""
    accelerator = start_ranks()
    with accelerator.main_process_first():  # which fills the cache of Arrow files
        shown = accelerator.is_main_process
        table = load_records(config.data, split=config.split, instruction=config.instruction, progress=shown)
        require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")
        asked = QuerySet.of(table)
        own = Path(config.data) if is_beir(Path(config.data)) else None
        corpus = own if config.corpus is None else Path(config.corpus)
        given = [flat_values(table, "negative_ids")] if "given" in config.retrievers else []
        pool = open_pool(table, corpus, np.concatenate([asked.known.values, *given]), progress=shown)
    task = Task(table, asked, pool, accelerator.device, accelerator.is_main_process)
    task.say(table.summary, f"{len(asked):,} different queries", pool)
    replaced = table.summary.negatives
    if replaced and "given" not in config.retrievers:
        task.say(f"the {replaced:,} negatives that rows have are replaced; name the retriever given to judge them anew")
    return task


def open_retrievers(config: MineConfig, task: Task) -> dict[str, Retriever]:
    """By name, those that search first, and the scorer if it is another."""
    specs = list(config.retrievers)
    if config.scorer not in (None, "judge", *specs):
        specs.append(str(config.scorer))
    return {name: open_retriever(config, task, spec, name) for spec, name in zip(specs, names_of(specs), strict=True)}


def open_retriever(config: MineConfig, task: Task, spec: str, name: str) -> Retriever:
    if spec == "bm25":
        return Bm25(task.asked, task.pool, task.device)
    if spec == "given":
        return Given(task.asked, task.pool, task.table)
    if Path(spec).is_file():
        folder = Path(config.data)
        require(is_beir(folder), f"{spec}: a run file needs query ids; give --data as a folder in the BEIR layout")
        run_file = RunFile(name, read_run(spec), query_ids(folder, task.asked), task.pool)
        task.say(f"{name}: lists nothing for {run_file.missing:,} of {len(task.asked):,} queries")
        return run_file
    embedder = Embedder.from_pretrained(spec, precision=precision_of(config)).to(task.device)
    dense = Dense.encode(
        name,
        embedder,
        task.asked,
        task.pool,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        progress=task.main and sys.stderr.isatty(),
    )
    task.say(*(f"{name}: {note}" for note in dense.notes))
    if config.index is None:
        return dense
    from nestling.mining.approximate import Index  # which needs FAISS

    return replace(dense, neighbours=Index(config.index, config.index_search))


def precision_of(config: MineConfig) -> torch.dtype:
    return torch.bfloat16 if config.compute == "bf16" else torch.float32


def read_judgements(config: MineConfig, task: Task) -> Judgements | None:
    """What negatives are measured by, if anything."""
    if config.judgements is None:
        return None
    judgements = Judgements.read(config.judgements, config.split, task.asked, task.pool)
    task.say(f"{config.judgements} judges {judgements.queries.sum():,} of the queries")
    return judgements
