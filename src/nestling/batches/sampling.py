"""Which rows make up which batch, by index: one dataset a batch, no text twice where that can be helped.

Plans are functions of (seed, epoch), the same on every rank. A dataset is an endless stream of passes, each a new
permutation of its rows; an epoch takes its share of batches from the stream, so no row is ever dropped for want of a
full batch, and resuming means skipping plans.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import xxhash

from nestling.records.table import RecordTable

# How many batches' worth of rows are looked through for ones that do not clash with a batch.
LOOKAHEAD = 8

Visit = tuple[int, int]  # a row and how often the stream had been through all rows before


@dataclass(frozen=True)
class Source:
    """A dataset and how it takes part in training.

    Args:
        table: Its rows.
        weight: How often an epoch visits each row.
        in_batch_negatives: Whether documents of other rows are negatives.
    """

    table: RecordTable
    weight: float = 1.0
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class BatchIndices:
    """One global batch by index.

    Args:
        source: Which dataset.
        rows: Its rows, one a query.
        row_epochs: For each row, how often the dataset had been gone through before; rotates what is drawn.
    """

    source: int
    rows: list[int]
    row_epochs: list[int]


@dataclass(frozen=True)
class RowSampler:
    """What is drawn from each row.

    Args:
        positives: At most so many positives a query.
        negatives: At most so many hard negatives a query.
        seed: Seeds their order.
    """

    positives: int
    negatives: int
    seed: int

    def __call__(self, table: RecordTable, row: int, row_epoch: int) -> tuple[list[int], list[int]]:
        """Indices of the positives and negatives that `row` brings in its stream's epoch number `row_epoch`."""
        positives = self._rotate(len(table.positive_ids(row)), self.positives, 2 * row, row_epoch)
        return positives, self._rotate(len(table.negative_ids(row)), self.negatives, 2 * row + 1, row_epoch)

    def _rotate(self, available: int, wanted: int, salt: int, row_epoch: int) -> list[int]:
        """`wanted` of `available`: a window that moves on over a permutation of the row's own."""
        if available <= wanted:
            return list(range(available))
        order = random.Random(f"{self.seed} {salt}").sample(range(available), available)
        start = row_epoch * wanted
        return [order[i % available] for i in range(start, start + wanted)]


class BatchSampler:
    """Plans of all epochs.

    Args:
        sources: The datasets.
        batch_size: Queries in a global batch.
        row_sampler: What is drawn from each row.
        seed: Seeds order and mixture.
        mixing_temperature: Datasets take part in proportion to size ** (1 / temperature).

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
                raise ValueError(
                    f"{source.table.name} has {len(source.table)} rows, fewer than the batch_size of {batch_size}; "
                    "lower batch_size or join it with a similar dataset"
                )
        self.sources = sources
        self.batch_size = batch_size
        self.row_sampler = row_sampler
        self.seed = seed
        self.batches_per_epoch = [math.ceil(rows / batch_size) for rows in epoch_rows(sources, mixing_temperature)]
        self._tables = {0: [source.table for source in sources]}

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.batches_per_epoch)

    def fingerprint(self) -> str:
        """Changes with any text of any dataset, so that a resumed run notices."""
        digest = xxhash.xxh3_128()
        for source in self.sources:
            digest.update(source.table.fingerprint.encode())
        return digest.hexdigest()

    def exchange(self, step: int, tables: Sequence[RecordTable]) -> None:
        """From the plan numbered `step` on, the datasets are these: the same rows, with other negatives."""
        assert [len(table) for table in tables] == [len(source.table) for source in self.sources]
        self._tables[step] = list(tables)

    def batches(self, skip: int = 0) -> Iterator[BatchIndices]:
        """Plans without end, epoch after epoch, from the one numbered `skip`."""
        return islice(self._all_batches(), skip, None)

    def _all_batches(self) -> Iterator[BatchIndices]:
        tables: list[RecordTable] = []
        streams = [self._stream(i, tables) for i in range(len(self.sources))]
        for number, i in enumerate(self._turns()):
            tables[:] = self._tables.get(number, tables)
            yield next(streams[i])

    def _turns(self) -> Iterator[int]:
        """Which dataset each batch is of."""
        for epoch in range(2**31):
            turns = [i for i, batches in enumerate(self.batches_per_epoch) for _ in range(batches)]
            random.Random(f"{self.seed} epoch {epoch}").shuffle(turns)
            yield from turns

    def _stream(self, source: int, tables: Sequence[RecordTable]) -> Iterator[BatchIndices]:
        """Batches of one dataset: rows in random order, those that clash with the batch put off to a later one.

        `tables` are all datasets as they are at the time.
        """
        rows = self._visits(source)
        waiting: list[Visit] = []
        while True:
            texts = BatchTexts()
            batch: list[Visit] = []
            put_off: list[Visit] = []
            for visit in chain(waiting, islice(rows, max(0, LOOKAHEAD * self.batch_size - len(waiting)))):
                fits = len(batch) < self.batch_size and texts.add(*self._texts(tables[source], *visit))
                (batch if fits else put_off).append(visit)
            missing = self.batch_size - len(batch)
            waiting = put_off[missing:]
            batch += put_off[:missing]
            yield BatchIndices(source, [row for row, _ in batch], [row_epoch for _, row_epoch in batch])

    def _visits(self, source: int) -> Iterator[Visit]:
        count = len(self.sources[source].table)
        for row_epoch in range(2**31):
            order = np.random.default_rng([self.seed, source, row_epoch]).permutation(count)
            yield from ((int(row), row_epoch) for row in order)

    def _texts(self, table: RecordTable, row: int, row_epoch: int) -> tuple[int, list[int], list[int]]:
        """Identities of the query, positives and negatives that a row brings."""
        positives, negatives = self.row_sampler(table, row, row_epoch)
        return (
            int(table.query_ids[row]),
            table.positive_ids(row)[positives].tolist(),
            table.negative_ids(row)[negatives].tolist(),
        )


class BatchTexts:
    """Identities of the texts of a batch in the making.

    Queries may share a positive, which is masked; any other text twice in a batch is a false negative or a waste.
    """

    def __init__(self) -> None:
        self.queries: set[int] = set()
        self.positives: set[int] = set()
        self.negatives: set[int] = set()

    def add(self, query: int, positives: list[int], negatives: list[int]) -> bool:
        """Take a row's texts in unless they clash; whether they were."""
        clash = (
            query in self.queries
            or not self.negatives.isdisjoint(positives)
            or not self.negatives.isdisjoint(negatives)
            or not self.positives.isdisjoint(negatives)
        )
        if not clash:
            self.queries.add(query)
            self.positives.update(positives)
            self.negatives.update(negatives)
        return not clash


def epoch_rows(sources: Sequence[Source], temperature: float) -> list[float]:
    """Rows of each dataset in an epoch: weight x size, evened out by the temperature at the same total."""
    sizes = [len(source.table) for source in sources]
    even = [size ** (1 / temperature) for size in sizes]
    scale = sum(sizes) / sum(even)
    return [source.weight * share * scale for source, share in zip(sources, even, strict=True)]
