"""The queries to mine for: each text with its instruction once, and what any row calls relevant to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nestling.mining.lists import Lists
from nestling.records.store import open_batches
from nestling.records.table import RecordTable
from nestling.records.texts import Texts
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class QuerySet:
    """The Q distinct queries of n rows.

    Attributes:
        texts: Their texts, read from disk when asked for.
        identities: [Q] int64, `text_id` of each.
        instructions: Q, the task of each or None.
        of_row: [n] int64, which query a row asks.
        known: For each query the identities of all positives that any row has for its text.
    """

    texts: Sequence[str]
    identities: Integers
    instructions: list[str | None]
    of_row: Integers
    known: Lists

    @classmethod
    def of(cls, table: RecordTable) -> "QuerySet":
        """The queries of a table in the order of the rows that ask them first."""
        tasks, task = read_instructions(table)
        both = np.stack([table.query_ids, task])
        _, first, of_row = np.unique(both, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first)
        first = first[order]
        return cls(
            texts=Texts(table.path, "query", first),
            identities=table.query_ids[first],
            instructions=[tasks[each] for each in task[first].tolist()],
            of_row=np.argsort(order)[of_row.reshape(-1)],
            known=Lists.of([table.known_positives(row) for row in first.tolist()]),
        )

    def __len__(self) -> int:
        return len(self.identities)


def read_instructions(table: RecordTable) -> tuple[list[str | None], Integers]:
    """The different instructions of a table's rows, and which of them each row has, [n] int64."""
    column = pa.chunked_array([batch.column("instruction") for batch in open_batches(table.path)[0]])
    coded = cast(Any, column.dictionary_encode().combine_chunks())
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return [*coded.dictionary.to_pylist(), table.instruction], codes
