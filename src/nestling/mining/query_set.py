"""The distinct queries to mine for, with the positives that all records together have for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nestling.mining.lists import Lists
from nestling.records.arrow_files import open_batches
from nestling.records.table import RecordTable
from nestling.records.texts import Texts
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class QuerySet:
    """The Q distinct queries of n records; a text with two instructions is two queries.

    Attributes:
        texts: Q texts, read from disk on access.
        identities: [Q] int64, `query_id` of each.
        instructions: The instruction of each query, or None.
        query_of_record: [n] int64, the query of each record.
        known_positives: For each query the `text_id` of all positives that any record has for it.
    """

    texts: Sequence[str]
    identities: Integers
    instructions: list[str | None]
    query_of_record: Integers
    known_positives: Lists

    @classmethod
    def of(cls, table: RecordTable) -> "QuerySet":
        """The queries of a table, in the order in which they first occur."""
        instructions, instruction_of = read_instructions(table)
        _, first, query_of_record = np.unique(table.query_ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        first = first[order]
        return cls(
            texts=Texts(table.path, "query", first),
            identities=table.query_ids[first],
            instructions=[instructions[i] for i in instruction_of[first].tolist()],
            query_of_record=np.argsort(order)[query_of_record],
            known_positives=Lists.of([table.known_positives(row) for row in first.tolist()]),
        )

    def __len__(self) -> int:
        return len(self.identities)


def read_instructions(table: RecordTable) -> tuple[list[str | None], Integers]:
    """The distinct instructions of a table, and the index of each record's instruction among them, [n] int64.

    The last is the table's own instruction, for records without one (index -1).
    """
    column = pa.chunked_array([batch.column("instruction") for batch in open_batches(table.path)[0]])
    coded = cast(Any, column.dictionary_encode().combine_chunks())
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return [*coded.dictionary.to_pylist(), table.instruction], codes
