"""The rows of each global batch, by index: every batch comes from one dataset, if possible without repeated texts.

Batches depend only on the seed and are the same on every rank. The rows of a dataset are an endless stream, reshuffled
after each row epoch (each time that all rows have been visited). A training epoch takes a fixed number of batches from
each stream, so that no row is dropped for lack of a full batch, and resuming a run means skipping batches.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import xxhash

from nestling.records.table import RecordTable

# A batch is chosen from the next rows of the stream: so many times the batch size.
LOOKAHEAD = 8

RowAndEpoch = tuple[int, int]  # a row, and the number of row epochs completed before this visit to it


@dataclass(frozen=True)
class Source:
    """A dataset and how it is used in training.

    Args:
        table: Its rows.
        weight: How often a training epoch visits each row.
        in_batch_negatives: Whether the documents of other rows in the batch are negatives.
        symmetric: Whether both texts of graded pairs are encoded as queries.
        held_out: BEIR folder of the rows that are held out as a dev set; None if there are none.
    """

    table: RecordTable
    weight: float = 1.0
    in_batch_negatives: bool = True
    symmetric: bool = True
    held_out: Path | None = None

    @property
    def documents_as_queries(self) -> bool:
        """Whether documents have the prompt and the length limit of queries."""
        return self.table.graded and self.symmetric


@dataclass(frozen=True)
class BatchIndices:
    """The rows of one global batch.

    Args:
        source: Index of the dataset.
        rows: Indices of rows in the dataset; each row has one query.
        row_epochs: For each row, how often all rows of the dataset had been visited before; `RowSampler` chooses other
            positives and negatives in each row epoch.
    """

    source: int
    rows: list[int]
    row_epochs: list[int]


@dataclass(frozen=True)
class RowSampler:
    """Chooses the positives and hard negatives that a row contributes to a batch.

    Args:
        positives: Positives of each query, at most.
        negatives: Hard negatives of each query, at most.
        seed: Seeds the order in which they are chosen.
    """

    positives: int
    negatives: int
    seed: int

    def __call__(self, table: RecordTable, row: int, row_epoch: int) -> tuple[list[int], list[int]]:
        """Indices of the positives and of the negatives of `row` that are used in row epoch `row_epoch`."""
        positives = self._rotate(len(table.positive_ids(row)), self.positives, 2 * row, row_epoch)
        return positives, self._rotate(len(table.negative_ids(row)), self.negatives, 2 * row + 1, row_epoch)

    def _rotate(self, available: int, wanted: int, salt: int, row_epoch: int) -> list[int]:
        """`wanted` indices below `available`: a window that moves along a fixed permutation with each row epoch."""
        if available <= wanted:
            return list(range(available))
        order = random.Random(f"{self.seed} {salt}").sample(range(available), available)
        start = row_epoch * wanted
        return [order[i % available] for i in range(start, start + wanted)]


class BatchSampler:
    """Chooses the rows of every global batch, epoch after epoch.

    Args:
        sources: The datasets.
        batch_size: Queries in a global batch.
        row_sampler: Chooses the positives and negatives of each row.
        seed: Seeds the order of rows and of datasets.
        mixing_temperature: Datasets are sampled in proportion to size ** (1 / temperature).

    Raises:
        ValueError: A dataset has fewer rows than a batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        row_sampler: RowSampler,
        seed: int,
        mixing_temperature: float = 1.0,
    ) -> None:
        for source in sources:
            if len(source.table) < batch_size:
                beside = "" if source.held_out is None else " beside those held out as a dev set (dev_share)"
                raise ValueError(
                    f"{source.table.name} has {len(source.table)} rows{beside}, fewer than the batch_size of "
                    f"{batch_size}; lower batch_size or join it with a similar dataset"
                )
        self.sources = sources
        self.batch_size = batch_size
        self.row_sampler = row_sampler
        self.seed = seed
        self.batches_per_epoch = [round_up(rows / batch_size) for rows in epoch_rows(sources, mixing_temperature)]
        self._tables = {0: [source.table for source in sources]}

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.batches_per_epoch)

    def fingerprint(self) -> str:
        """A hash of all texts of all datasets, by which a resumed run detects that its data has changed."""
        digest = xxhash.xxh3_128()
        for source in self.sources:
            digest.update(source.table.fingerprint.encode())
        return digest.hexdigest()

    def replace_tables(self, step: int, tables: Sequence[RecordTable]) -> None:
        """From batch number `step` on, use these tables: the same rows, with other negatives."""
        assert [len(table) for table in tables] == [len(source.table) for source in self.sources]
        self._tables[step] = list(tables)

    def batches(self, skip: int = 0) -> Iterator[BatchIndices]:
        """An endless iterator over batches, epoch after epoch, without the first `skip`."""
        return islice(self._all_batches(), skip, None)

    def _all_batches(self) -> Iterator[BatchIndices]:
        tables: list[RecordTable] = []
        streams = [self._source_batches(i, tables) for i in range(len(self.sources))]
        for number, i in enumerate(self._source_order()):
            tables[:] = self._tables.get(number, tables)
            yield next(streams[i])

    def _source_order(self) -> Iterator[int]:
        """The index of the dataset of each batch."""
        for epoch in range(2**31):
            order = [i for i, batches in enumerate(self.batches_per_epoch) for _ in range(batches)]
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
            yield from order

    def _source_batches(self, source: int, tables: Sequence[RecordTable]) -> Iterator[BatchIndices]:
        """Batches of one dataset: its rows in random order; a row that conflicts with the batch waits for a later one.

        Args:
            source: Index of the dataset.
            tables: The current tables of all datasets; the caller replaces them in place.
        """
        rows = self._shuffled_rows(source)
        deferred: list[RowAndEpoch] = []
        while True:
            texts = BatchTexts()
            batch: list[RowAndEpoch] = []
            rejected: list[RowAndEpoch] = []
            for candidate in chain(deferred, islice(rows, max(0, LOOKAHEAD * self.batch_size - len(deferred)))):
                fits = len(batch) < self.batch_size and texts.add(*self._texts(tables[source], *candidate))
                (batch if fits else rejected).append(candidate)
            missing = self.batch_size - len(batch)
            deferred = rejected[missing:]
            batch += rejected[:missing]  # with conflicts, where too few rows are without
            yield BatchIndices(source, [row for row, _ in batch], [row_epoch for _, row_epoch in batch])

    def _shuffled_rows(self, source: int) -> Iterator[RowAndEpoch]:
        """An endless stream of a dataset's rows."""
        count = len(self.sources[source].table)
        for row_epoch in range(2**31):
            order = np.random.default_rng([self.seed, source, row_epoch]).permutation(count)
            yield from ((int(row), row_epoch) for row in order)

    def _texts(self, table: RecordTable, row: int, row_epoch: int) -> tuple[int, list[int], list[int]]:
        """Text ids of a row's query, and of the positives and negatives that are chosen from it."""
        positives, negatives = self.row_sampler(table, row, row_epoch)
        return (
            int(table.query_ids[row]),
            table.positive_ids(row)[positives].tolist(),
            table.negative_ids(row)[negatives].tolist(),
        )


class BatchTexts:
    """Text ids of the batch that is being put together.

    Two queries may share a positive, which the loss masks. Any other repeated text would be a false negative, or would
    be encoded without teaching anything.
    """

    def __init__(self) -> None:
        self.queries: set[int] = set()
        self.positives: set[int] = set()
        self.negatives: set[int] = set()

    def add(self, query: int, positives: list[int], negatives: list[int]) -> bool:
        """Add the texts of a row unless they conflict with those of the batch; returns whether they were added."""
        conflict = (
            query in self.queries
            or not self.negatives.isdisjoint(positives)
            or not self.negatives.isdisjoint(negatives)
            or not self.positives.isdisjoint(negatives)
        )
        if not conflict:
            self.queries.add(query)
            self.positives.update(positives)
            self.negatives.update(negatives)
        return not conflict


def epoch_rows(sources: Sequence[Source], temperature: float) -> list[float]:
    """Rows of each dataset in a training epoch: weight x tempered size, where tempering keeps the sum of the sizes."""
    sizes = [len(source.table) for source in sources]
    tempered = [size ** (1 / temperature) for size in sizes]
    scale = sum(sizes) / sum(tempered)
    return [source.weight * size * scale for source, size in zip(sources, tempered, strict=True)]


def round_up(batches: float) -> int:
    """Whole batches for a number of them; 2.2 x 25, which is a little more than 55 in binary, makes 55."""
    return math.ceil(round(batches, 6))
