"""LanceDB: tables in a folder, through its own client and in this process.

int8 and binary keep float16 in the table and quantise in the index: scalars of 8 bits in a graph (HNSW-SQ), and RaBitQ
(Gao and Long 2024, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound"), one bit a dimension
of the rotated vectors, without a graph.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("LANCEDB_LOG", "error")  # else each new table is a warning

import lancedb
import pyarrow as pa
from lancedb.index import HnswFlat, HnswSq, IvfRq

from nestling.config.search_stores import Store, StoredPrecision
from nestling.stores.store import Batch, Hits, Vectors

BITS = 8  # whose multiples RaBitQ's dimensions have to be
INDICES = {"float32": HnswFlat, "float16": HnswFlat, "int8": HnswSq, "binary": IvfRq}


@contextmanager
def open_lancedb(folder: Path, *, ef_search: int, oversampling: int) -> Iterator["LanceStore"]:
    """Open a folder of tables. Raises ValueError for whatever its client reports."""
    try:
        yield LanceStore(folder, ef_search, oversampling)
    except RuntimeError as error:
        raise ValueError(f"lancedb: {str(error).strip().splitlines()[0]}") from error


class LanceStore:
    """Tables of a folder.

    Args:
        folder: Where they are.
        ef_search: Nodes that the search of a graph keeps.
        oversampling: Candidates of int8 and binary for each result.
    """

    name: Store = "lancedb"
    precisions: Sequence[StoredPrecision] = ("float32", "float16", "int8", "binary")

    def __init__(self, folder: Path, ef_search: int, oversampling: int) -> None:
        self._folder, self._ef_search, self._oversampling = folder, ef_search, oversampling
        self._database = lancedb.connect(folder)

    def refuses(self, dim: int, precision: StoredPrecision) -> str | None:
        return f"multiples of {BITS}" if precision == "binary" and dim % BITS else None

    def exists(self, name: str) -> bool:
        return self._path(name).exists()

    def create(self, name: str, dim: int, precision: StoredPrecision) -> "LanceTable":
        kept = pa.float32() if precision == "float32" else pa.float16()
        schema = pa.schema({"id": pa.string(), "vector": pa.list_(kept, dim)})
        self._database.drop_table(name, ignore_missing=True)  # overwriting it would keep the files of its old version
        table = self._database.create_table(name, schema=schema)
        refine = self._oversampling if precision in ("int8", "binary") else None
        return LanceTable(table, self._path(name), schema, precision, self._ef_search, refine)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lance"


class LanceTable:
    def __init__(
        self, table: Any, path: Path, schema: Any, precision: StoredPrecision, ef_search: int, refine: int | None
    ) -> None:
        self._table, self._path, self._schema, self._precision = table, path, schema, precision
        self._ef_search, self._refine = ef_search, refine

    def write(self, batches: Iterable[Batch]) -> None:
        column = self._schema.field("vector").type

        def rows() -> Iterator[Any]:
            for ids, vectors in batches:
                values = pa.array(vectors.ravel()).cast(column.value_type)
                columns = [pa.array(ids), pa.FixedSizeListArray.from_arrays(values, type=column)]
                yield pa.record_batch(columns, schema=self._schema)

        self._table.add(pa.RecordBatchReader.from_batches(self._schema, rows()))

    def build_index(self) -> None:
        self._table.create_index("vector", config=INDICES[self._precision](distance_type="cosine"))

    def search(self, query: Vectors, count: int) -> Hits:
        asked = self._table.search(query).distance_type("cosine").ef(self._ef_search).limit(count)
        if self._refine is not None:
            asked = asked.refine_factor(self._refine)
        found = asked.select(["id", "_distance"]).to_arrow().to_pydict()
        return [(id_, 1 - distance) for id_, distance in zip(found["id"], found["_distance"], strict=True)]

    def bytes(self) -> tuple[int, int]:
        sizes = {"data": 0, "_indices": 0}
        for path in self._path.rglob("*"):
            part = path.relative_to(self._path).parts[0]
            if part in sizes and path.is_file():
                sizes[part] += path.stat().st_size
        return sizes["data"], sizes["_indices"]
