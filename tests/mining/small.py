"""Small records, pools and embeddings for tests of mining."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nestling.mining.pool import Pool, flat_values, open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Retrieved
from nestling.mining.vectors import Vectors
from nestling.records import RecordTable, load_records
from sets import WORDS


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_corpus(path: Path, texts: list[str]) -> Path:
    return write_rows(path, [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose queries, positives and negatives are drawn from few words, so that texts repeat."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(1, most)))

    return [
        {
            "query": f"{WORDS[i % (count * 2 // 3) % 12]} {i % (count * 2 // 3)}?",
            "positives": [text(5) for _ in range(1 + i % 3)],
            "negatives": [text(5) for _ in range(i % 4)],
            **({"instruction": "find it"} if i % 5 == 0 else {}),
        }
        for i in range(count)
    ]


def opened(rows: Path, corpus: Path | None = None) -> tuple[RecordTable, QuerySet, Pool]:
    table = load_records(rows, progress=False)
    query_set = QuerySet.of(table)
    needed = np.concatenate([query_set.known_positives.values, flat_values(table, "negative_ids")])
    return table, query_set, open_pool(table, corpus, needed, progress=False)


def make_vectors(values: np.ndarray, shard_size: int) -> Vectors:
    halves = values.astype(np.float16)
    return Vectors([halves[start : start + shard_size] for start in range(0, len(halves), shard_size)], shard_size)


def coarse(rng: np.random.Generator, count: int, dim: int = 6) -> np.ndarray:
    """Values whose products are exact in float32, many of them equal."""
    return rng.integers(-8, 9, (count, dim)) / 16


def reference(queries: np.ndarray, documents: np.ndarray, depth: int) -> Retrieved:
    """All scores in float64, sorted."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores), axis=1)[:, :depth]
    retrieved = Retrieved.empty(len(queries), depth)
    retrieved.documents[:, : order.shape[1]] = order
    retrieved.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return retrieved


def unit(rng: np.random.Generator, count: int, dim: int = 384) -> np.ndarray:
    values = rng.standard_normal((count, dim)).astype(np.float32)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
