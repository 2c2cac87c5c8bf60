"""pgvector, an extension of Postgres, through psycopg.

Vectors are normalised, so that the inner product is the cosine; `<#>` is its negative. binary keeps float16 in the
table and an index of signs, by whose Hamming distance (`<~>`) candidates are found.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from nestling.config import require
from nestling.config.search_stores import Store, StoredPrecision
from nestling.console import say
from nestling.stores.store import Batch, Hits, Vectors

FIRST_WITH_BITS = (0, 7)  # the version that has halfvec and an index of bits
TYPES = {"float32": "vector", "float16": "halfvec", "binary": "halfvec"}
# Dimensions that HNSW takes of vector and halfvec, and a column of halfvec, whose signs it has in the last.
MOST_DIMS = {"float32": 2000, "float16": 4000, "binary": 16_000}
INDICES = {
    "float32": "CREATE INDEX {index} ON {table} USING hnsw (embedding vector_ip_ops)",
    "float16": "CREATE INDEX {index} ON {table} USING hnsw (embedding halfvec_ip_ops)",
    "binary": "CREATE INDEX {index} ON {table} USING hnsw ((binary_quantize(embedding)::bit({dim})) bit_hamming_ops)",
}
NEAREST = "SELECT id, -(embedding <#> %(query)s) FROM {table} ORDER BY embedding <#> %(query)s LIMIT %(count)s"
RESCORED = """
    SELECT id, -(embedding <#> %(query)s) FROM (
        SELECT id, embedding FROM {table}
        ORDER BY binary_quantize(embedding)::bit({dim}) <~> binary_quantize(%(query)s) LIMIT %(candidates)s
    ) AS candidates
    ORDER BY embedding <#> %(query)s LIMIT %(count)s"""


@contextmanager
def open_pgvector(url: str, *, ef_search: int, oversampling: int) -> Iterator["PgvectorStore"]:
    """Connect to a Postgres. Raises ValueError for whatever its client reports, and for a pgvector that is too old."""
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.add_notice_handler(lambda notice: say(f"pgvector: {notice.message_primary}"))
            connection.execute("SET client_min_messages TO WARNING; CREATE EXTENSION IF NOT EXISTS vector")
            require_version(connection)
            register_vector(connection)
            # What is measured is the index, which the planner would leave aside for a small table.
            connection.execute(
                f"SET enable_seqscan TO off; SET hnsw.ef_search TO {ef_search}; RESET client_min_messages"
            )
            yield PgvectorStore(connection, oversampling)
    except psycopg.Error as error:
        raise ValueError(f"pgvector: {str(error).strip().splitlines()[0]}") from error


def require_version(connection: Any) -> None:
    """Raise ValueError for a pgvector without float16 and bits."""
    (version,) = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    require(
        tuple(map(int, version.split(".")[:2])) >= FIRST_WITH_BITS,
        f"pgvector is {version}, expected 0.7 or newer: install it and ALTER EXTENSION vector UPDATE",
    )


class PgvectorStore:
    """Tables of a Postgres.

    Args:
        connection: An open connection that commits by itself.
        oversampling: Candidates of binary for each result.
    """

    name: Store = "pgvector"
    precisions: Sequence[StoredPrecision] = ("float32", "float16", "binary")

    def __init__(self, connection: Any, oversampling: int) -> None:
        self._connection, self._oversampling = connection, oversampling

    def refuses(self, dim: int, precision: StoredPrecision) -> str | None:
        most = MOST_DIMS[precision]
        return f"up to {most:,}" if dim > most else None

    def exists(self, name: str) -> bool:
        (found,) = self._connection.execute("SELECT to_regclass(quote_ident(%s))", [name]).fetchone()
        return found is not None

    def create(self, name: str, dim: int, precision: StoredPrecision) -> "PgvectorTable":
        parts = {"table": sql.Identifier(name), "type": sql.SQL(TYPES[precision]), "dim": sql.Literal(dim)}
        if self.exists(name):
            self._connection.execute(sql.SQL("DROP TABLE {table}").format(**parts))
        self._connection.execute(
            sql.SQL("CREATE TABLE {table} (id text PRIMARY KEY, embedding {type}({dim}))").format(**parts)
        )
        return PgvectorTable(self._connection, name, dim, precision, self._oversampling)


class PgvectorTable:
    def __init__(self, connection: Any, name: str, dim: int, precision: StoredPrecision, oversampling: int) -> None:
        self._connection, self._precision, self._oversampling = connection, precision, oversampling
        self._names = {"table": name, "index": f"{name}_index"}
        self._parts = {key: sql.Identifier(each) for key, each in self._names.items()} | {"dim": sql.Literal(dim)}
        self._type = TYPES[precision]
        self._vector = {"vector": Vector, "halfvec": HalfVector}[self._type]
        self._query = self._sql(RESCORED if precision == "binary" else NEAREST)

    def write(self, batches: Iterable[Batch]) -> None:
        copy = self._sql("COPY {table} (id, embedding) FROM STDIN WITH (FORMAT binary)")
        with self._connection.cursor().copy(copy) as stream:
            stream.set_types(["text", self._type])
            for ids, vectors in batches:
                for identifier, vector in zip(ids, vectors, strict=True):
                    stream.write_row((identifier, self._vector(vector)))

    def build_index(self) -> None:
        self._connection.execute(self._sql(INDICES[self._precision]))
        self._connection.execute(self._sql("VACUUM ANALYZE {table}"))

    def search(self, query: Vectors, count: int) -> Hits:
        values = {"query": self._vector(query), "count": count, "candidates": count * self._oversampling}
        found: Hits = self._connection.execute(self._query, values, binary=True).fetchall()
        return found

    def bytes(self) -> tuple[int, int]:
        asked = "SELECT pg_table_size(quote_ident(%(table)s)), pg_relation_size(quote_ident(%(index)s))"
        rows, index = self._connection.execute(asked, self._names).fetchone()
        return rows, index

    def _sql(self, text: str) -> Any:
        return sql.SQL(text).format(**self._parts)
