"""Small records and pools for tests of mining."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nestling.mining.asked import Asked
from nestling.mining.pool import Pool, flat_values, open_pool
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


def opened(rows: Path, corpus: Path | None = None) -> tuple[RecordTable, Asked, Pool]:
    table = load_records(rows, progress=False)
    asked = Asked.of(table)
    needed = np.concatenate([asked.known.values, flat_values(table, "negative_ids")])
    return table, asked, open_pool(table, corpus, needed, progress=False)
