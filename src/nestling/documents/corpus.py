"""The corpus.jsonl of what a journal holds, with groups of near duplicates, and what has no part in it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nestling.data_checks.groups import find, join
from nestling.data_checks.near_duplicates import NearDuplicateCriterion, minhash_texts, near_duplicates_within
from nestling.documents.documents import Reading, Row
from nestling.documents.files import Listing
from nestling.documents.journal import Journal
from nestling.documents.refusals import Dropped
from nestling.files import replacing, write_jsonl
from nestling.records.arrow_files import write_batches
from nestling.records.collection import ROWS_PER_BATCH, TEXT_PER_BATCH
from nestling.records.texts import Texts

SCHEMA = pa.schema([("text", pa.string())])


@dataclass
class Counts:
    """What a corpus consists of.

    Args:
        documents: Kind -> documents.
        chunks: Kind -> chunks.
        tokens: Kind -> tokens.
        encodings: Encoding -> documents.
        dropped: What has no part in the corpus.
        groups: Groups of near duplicates.
        grouped: Chunks in these.
    """

    documents: Counter[str] = field(default_factory=Counter)
    chunks: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    dropped: list[Dropped] = field(default_factory=list)
    groups: int = 0
    grouped: int = 0

    def add(self, reading: Reading) -> None:
        """Count a document."""
        self.dropped += reading.dropped
        if reading.kind is not None:
            self.documents[reading.kind] += 1
            self.chunks[reading.kind] += len(reading.rows)
            self.tokens[reading.kind] += reading.tokens
            self.encodings.update(filter(None, [reading.encoding]))


def write_corpus(
    output: Path, listing: Listing, journal: Journal, criterion: NearDuplicateCriterion, *, progress: bool = False
) -> Counts:
    """Write corpus.jsonl and dropped.jsonl, atomically.

    Args:
        output: Folder to write to.
        listing: The files, in the order of the corpus.
        journal: Has what they give.
        criterion: When two chunks are near duplicates; the earliest chunk of a group names it in metadata.
        progress: Show a progress bar.

    Raises:
        ValueError: There is no text; dropped.jsonl is written.
    """
    counts = Counts(dropped=list(listing.dropped))
    with replacing(output / "chunks.arrow") as texts_file:
        _write_texts(texts_file, _counted(listing, journal, counts))
        write_jsonl(output / "dropped.jsonl", (asdict(each) for each in counts.dropped))
        if not counts.chunks.total():
            raise ValueError(f"no text in any of {len(listing.files):,} files; {output / 'dropped.jsonl'} says why")
        texts = Texts(texts_file, "text")
        groups = group_chunks(texts, criterion, "near duplicates" if progress else None)
        rows = (row for path in listing.files for reading in journal.readings(path) for row in reading.rows)
        write_jsonl(output / "corpus.jsonl", _with_groups(rows, groups))
        del texts
    (output / "chunks.arrow").unlink()
    sizes = np.unique(groups, return_counts=True)[1]
    counts.groups, counts.grouped = int((sizes > 1).sum()), int(sizes[sizes > 1].sum())
    return counts


def group_chunks(texts: Sequence[str], criterion: NearDuplicateCriterion, label: str | None = None) -> np.ndarray:
    """The groups of near duplicates among N texts: [N] int64, of each text the first one of its group."""
    root = np.arange(len(texts))
    near = near_duplicates_within(texts, minhash_texts(texts, criterion, label), criterion)
    join(root, zip(near.first.tolist(), near.second.tolist(), strict=True))
    return np.array([find(root, each) for each in range(len(texts))], dtype=np.int64)


def _counted(listing: Listing, journal: Journal, counts: Counts) -> Iterator[str]:
    for path in listing.files:
        for reading in journal.readings(path):
            counts.add(reading)
            yield from (row["text"] for row in reading.rows)


def _write_texts(path: Path, texts: Iterator[str]) -> None:
    with write_batches(path, SCHEMA) as writer:
        waiting: list[str] = []
        size = 0
        for text in texts:
            waiting.append(text)
            size += len(text)
            if len(waiting) == ROWS_PER_BATCH or size >= TEXT_PER_BATCH:
                writer.write_batch(pa.record_batch([pa.array(waiting)], schema=SCHEMA))
                waiting, size = [], 0
        writer.write_batch(pa.record_batch([pa.array(waiting, pa.string())], schema=SCHEMA))


def _with_groups(rows: Iterator[Row], groups: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows; those that have near duplicates with the id of the first one."""
    sizes = np.bincount(groups, minlength=len(groups))
    names: dict[int, str] = {}
    for row, group in zip(rows, groups.tolist(), strict=True):
        if sizes[group] > 1:
            names.setdefault(group, row["_id"])
            row["metadata"]["group"] = names[group]
        yield row
