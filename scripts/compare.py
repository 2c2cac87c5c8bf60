"""Print results of scripts/evaluate.py side by side, one column a file.

python scripts/compare.py --results bm25.json,before.json,after.json
python scripts/compare.py --results before.json,after.json --metric MRR@10
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.config import parse_config, require, run
from nestling.console import table

# Data set, dimension and embedding precision; the last two are None for BM25 and runs, which have no embeddings.
Key = tuple[str, int | None, str | None]


@dataclass(frozen=True)
class CompareConfig:
    """Settings of scripts/compare.py.

    Args:
        results: JSON files of scripts/evaluate.py --output, with commas between; columns bear their names. A reranker's
            has two: its order, and that fused with the first stage's.
        metric: The metric to show.
    """

    results: list[str]
    metric: str = "nDCG@10"

    def __post_init__(self) -> None:
        require(bool(self.results), "results is empty; give JSON files of scripts/evaluate.py --output")


def main() -> None:
    config = parse_config(CompareConfig, __doc__)
    names = [Path(path).stem for path in config.results]
    require(len(set(names)) == len(names), "results: two files bear the same name; columns need different ones")
    columns = {
        name + (f" {order}" if order == "fused" else ""): column
        for name, path in zip(names, config.results, strict=True)
        for order, column in read_results(Path(path), config.metric).items()
        if order != "first stage"  # its metrics here are over the candidates only; it has a result file of its own
    }
    print(config.metric)
    print(table(["data", "dim", "embedding_precision", *columns], table_rows(columns)))


def read_results(path: Path, metric: str) -> dict[str | None, dict[Key, float]]:
    """Read one metric of each table row of a result file, by order; the order is None where there is no reranker.

    Raises:
        ValueError: `path` is not a result file, or lacks the metric.
    """
    require(path.is_file(), f"{path}: no such file; expected one that scripts/evaluate.py --output wrote")
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"]
        keyed = [
            (row.get("order"), (row["data"], row["dim"], row["embedding_precision"]), row["metrics"]) for row in results
        ]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: not a result of scripts/evaluate.py --output") from None
    named = dict.fromkeys(name for *_, metrics in keyed for name in metrics)
    require(metric in named, f"{path}: no metric '{metric}'; it has {', '.join(named)}")
    columns: dict[str | None, dict[Key, float]] = {}
    for order, key, metrics in keyed:
        if metric in metrics:  # mteb tasks that are not retrieval have other metrics
            columns.setdefault(order, {})[key] = metrics[metric]
    return columns


def table_rows(columns: dict[str, dict[Key, float]]) -> list[list[object]]:
    """A table row for each set, dimension and precision; values without a dimension stand in all rows of their set."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    with_embeddings = {data for data, dim, _ in keys if dim is not None}
    shown = [key for key in keys if key[1] is not None or key[0] not in with_embeddings]
    return [
        [*key, *(column.get(key, column.get((key[0], None, None))) for column in columns.values())] for key in shown
    ]


if __name__ == "__main__":
    run(main)
