"""Hard negatives of a dataset by the model in training: the same rows with other negatives.

Shapes: n rows, Q distinct queries.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nestling.config import RefreshConfig
from nestling.files import named, sync
from nestling.mining.candidates import unite
from nestling.mining.lists import Lists
from nestling.mining.mined import Mined, Positives, drop_copies, drop_high, hardness, known_rows
from nestling.mining.pool import Pool, open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrievers import Dense
from nestling.mining.selection import Thresholds, Verdicts, draw, make_noise
from nestling.records.beir import is_beir
from nestling.records.store import open_batches, scratch_file, write_batches
from nestling.records.table import SCHEMA, RecordTable
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Minable:
    """A dataset that can be mined for.

    Attributes:
        table: Its n rows.
        asked: Their queries.
        pool: The documents that negatives come from.
    """

    table: RecordTable
    asked: QuerySet
    pool: Pool

    @classmethod
    def open(cls, table: RecordTable, path: str, corpus: str | None, *, progress: bool) -> "Minable | None":
        """None for graded pairs, which have no negatives. Documents and errors as in `open_pool`.

        Args:
            table: The rows.
            path: What they were read from; the corpus of a BEIR folder goes first.
            corpus: A BEIR folder or a corpus.jsonl.
            progress: Show a bar for conversions that take more than a second.
        """
        if table.graded:
            return None
        place = path if is_beir(Path(path)) else corpus
        asked = QuerySet.of(table)
        pool = open_pool(table, None if place is None else Path(place), asked.known.values, progress=progress)
        return cls(table, asked, pool)


def mine_anew(minable: Minable, dense: Dense, rules: RefreshConfig, *, negatives: int, seed: int) -> Mined:
    """What a model finds for the queries, at most `negatives` of each; all ranks must call it."""
    asked, pool = minable.asked, minable.pool
    candidates, lists = unite({dense.name: dense.search(rules.depth)}), known_rows(asked, pool)
    scores = dense.score(lists.owners, lists.values)
    positives = Positives(lists, {dense.name: scores}, np.ones(len(scores), dtype=bool))
    verdicts = Verdicts(len(candidates))
    drop_copies(verdicts, asked, pool, lists, candidates)
    drop_high(verdicts, candidates, positives, dense.name, Thresholds(margin=rules.margin, percent=rules.percent))
    noise = make_noise(seed, asked.identities[candidates.queries], pool.identities[candidates.rows])
    chosen = draw(
        candidates.lists, candidates.scores[dense.name], verdicts.left, negatives, noise=noise, among=rules.among
    )
    nothing = Lists.of([np.zeros(0, np.int64)] * len(asked))
    return Mined(asked, pool, positives, candidates, verdicts, dense.name, chosen, nothing)


def write_renewed(path: Path, table: RecordTable, mined: Mined) -> None:
    """Write the table's rows, in their order, with mined negatives and no teacher scores; whole or not at all."""
    counts = mined.negatives.counts[mined.asked.of_row]
    summary = replace(
        table.summary, negatives=int(counts.sum()), max_negatives=int(counts.max(initial=0)), rows_scored=0
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), scratch_file(path.parent) as scratch:
        with write_batches(scratch, SCHEMA, summary.to_json()) as writer:
            for batch in renewed_batches(table, mined):
                writer.write_batch(batch)
        sync(scratch)
        os.replace(scratch, path)


def renewed_batches(table: RecordTable, mined: Mined) -> Iterator[Any]:
    """The record batches of a table with other negatives."""
    start = 0
    for batch in open_batches(table.path)[0]:
        queries = mined.asked.of_row[start : start + batch.num_rows]
        start += batch.num_rows
        documents = [mined.candidates.rows[mined.negatives[query]] for query in queries.tolist()]
        none = [None] * batch.num_rows
        changed = {
            "negatives": texts_of(mined.pool, documents),
            "negative_ids": [mined.pool.identities[each] for each in documents],
            "positive_scores": none,
            "negative_scores": none,
        }
        columns = [
            pa.array(changed[field.name], field.type) if field.name in changed else batch.column(field.name)
            for field in SCHEMA
        ]
        yield pa.record_batch(columns, schema=SCHEMA)


def texts_of(pool: Pool, documents: Sequence[Integers]) -> list[list[str]]:
    """The texts of documents, in the same lists; each is read once."""
    different, which = np.unique(np.concatenate([np.zeros(0, np.int64), *documents]), return_inverse=True)
    read: Any = pool.texts
    texts = np.array(read[different] if len(different) else [], dtype=object)
    return [each.tolist() for each in np.split(texts[which], np.cumsum([len(each) for each in documents])[:-1])]


def renewal_line(mined: Mined, wanted: int) -> str:
    """What came out, to read."""
    score, gap = hardness(mined)
    short = int((mined.negatives.counts < wanted).sum())
    fewer = f"; {short:,} of {len(mined.asked):,} queries have fewer than {wanted}" if short else ""
    return (
        f"{len(mined.negatives.values):,} hard negatives mined anew, cosine {score:.4f} in the mean, {gap:.4f} below "
        f"the lowest positive{fewer}"
    )
