"""Queries of a dev set that are trained on: dev chooses the checkpoint, and must be of queries that are not."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from nestling.batches.sampling import Source
from nestling.records.arrow_files import open_batches
from nestling.records.record import cut
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.table import RecordTable

SHOWN = 60  # characters of an example


def leak_note(dev_set: RetrievalSet, sources: Sequence[Source]) -> str | None:
    """A line about queries of a dev set that are training queries too, but for case and outer white space; or None.

    It counts those with a relevant document among the positives apart: their answers are learned by heart.
    """
    positions = {folded: i for i, query in enumerate(dev_set.queries) if (folded := query.strip().lower())}
    found: set[int] = set()
    answered: set[int] = set()
    for table in (source.table for source in sources):
        for row, query in equal_queries(table, positions):
            found.add(query)
            relevant = {dev_set.documents[int(each)] for each in dev_set.relevant[query]}
            if relevant.intersection(table[row].positives):
                answered.add(query)
    if not found:
        return None
    folder = dev_set.name.rpartition("/")[0] or dev_set.name
    return (
        f"{dev_set.name}: {len(found):,} of {len(dev_set.queries):,} queries are training queries too, "
        f"{len(answered):,} of them with a relevant document as a positive, such as "
        f"{cut(dev_set.queries[min(found)], SHOWN)!r}. Figures of this set, which choose the checkpoint, are too good "
        f"by that; scripts/check_data.py --data TRAIN --eval {folder} --output CLEANED takes such rows out"
    )


def equal_queries(table: RecordTable, positions: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Rows of a table whose query is one of the given texts, in lower case, each with that text's value."""
    texts = pa.array(list(positions), pa.string())
    start = 0
    for batch in open_batches(table.path)[0]:
        folded = pc.utf8_lower(pc.utf8_trim_whitespace(batch.column("query")))
        for row in pc.indices_nonzero(pc.is_in(folded, texts)).to_pylist():
            yield start + row, positions[folded[row].as_py()]
        start += batch.num_rows
