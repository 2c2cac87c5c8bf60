"""What scripts/evaluate.py wrote: a file of results and, beside it, what each query got.

Shape legend: Q queries.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nestling.config import details_path, require
from nestling.retrieval.metrics import Floats

# By which results are summed up and queries are told apart.
METRIC = "nDCG@10"


class Key(NamedTuple):
    """A row of a table of results: what was measured, and how.

    Args:
        data: The set.
        dim: Of the embeddings; None without any.
        embedding_precision: Likewise.
        order: "first stage", "reranked" or "fused" of a reranker's; None of others.
    """

    data: str
    dim: int | None
    embedding_precision: str | None
    order: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Key":
        """That of a row of results, or of a line of details."""
        return cls(row["data"], row["dim"], row["embedding_precision"], row.get("order"))


@dataclass(frozen=True)
class PerQuery:
    """The queries of one row.

    Attributes:
        ids: Q ids.
        metrics: [Q] float64 of each metric.
        offsets: [Q] int64, where their lines begin in the file.
    """

    ids: Sequence[str]
    metrics: Mapping[str, Floats]
    offsets: np.ndarray


@dataclass(frozen=True)
class Result:
    """A file of results.

    Attributes:
        name: The file's stem.
        config: The settings of the evaluation.
        rows: Metrics of each row of the table.
        queries: How many queries each row is the mean of.
        details: The file beside it; None if there is none.
        per_query: What that says of each row; empty without it.
    """

    name: str
    config: Mapping[str, Any]
    rows: Mapping[Key, Mapping[str, float]]
    queries: Mapping[Key, int]
    details: Path | None
    per_query: Mapping[Key, PerQuery]

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(key.data for key in self.rows))

    def orders(self, data: str) -> list[Key]:
        """The rows that stand for the result on a set: of the largest dimension and the first precision, every order.

        A reranker's first stage comes first. Empty if the set was not measured.
        """
        keys = [key for key in self.rows if key.data == data]
        largest = max((key.dim or 0 for key in keys), default=0)
        widest = [key for key in keys if (key.dim or 0) == largest]
        return [key for key in widest if key.embedding_precision == widest[0].embedding_precision]

    def after(self, data: str) -> Key:
        """The row that the result is about: what a reranker made of its first stage, and else the only order."""
        orders = self.orders(data)
        return next((key for key in orders if key.order == "reranked"), orders[0])

    def lines(self, key: Key, places: Sequence[int] | np.ndarray | None = None) -> Iterator[dict[str, Any]]:
        """Lines of details of some queries of a row, by default all; only these are read."""
        assert self.details is not None
        per_query = self.per_query[key]
        with self.details.open("rb") as stream:
            for place in range(len(per_query.ids)) if places is None else places:
                stream.seek(int(per_query.offsets[place]))
                yield json.loads(stream.readline())


def read_result(path: Path) -> Result:
    """Read a file of results and its details.

    Raises:
        ValueError: There is no such file, it is no such file, or the details are not those of the results.
    """
    require(path.is_file(), f"{path}: no such file; expected one that scripts/evaluate.py --output wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            Key.of(row): {name: float(value) for name, value in row["metrics"].items()} for row in content["results"]
        }
        queries = {Key.of(row): int(row["queries"]) for row in content["results"]}
        config = dict(content["config"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a result of scripts/evaluate.py --output") from None
    require(bool(rows), f"{path}: it holds no result")
    details = details_path(path) if details_path(path).is_file() else None
    per_query = {} if details is None else read_details(details)
    for key, each in per_query.items():
        require(
            key in rows and all(same_mean(rows[key].get(name), values) for name, values in each.metrics.items()),
            f"{details}: its means are not the results of {path} ({describe(key)}); evaluate again, or remove it",
        )
    return Result(path.stem, config, rows, queries, details, per_query)


def read_details(path: Path) -> dict[Key, PerQuery]:
    """Metrics of every query of every row; texts and scores stay in the file.

    Raises:
        ValueError: A line that is not one of details, with file and line.
    """
    found: dict[Key, tuple[list[str], list[dict[str, float]], list[int]]] = {}
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                ids, metrics, offsets = found.setdefault(Key.of(row), ([], [], []))
                ids.append(row["query_id"])
                metrics.append(row["metrics"])
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(f"{path}:{number}: not a line that scripts/evaluate.py --details wrote") from None
            offsets.append(offset)
            offset += len(line)
    return {
        key: PerQuery(ids, {name: np.array([each[name] for each in metrics]) for name in metrics[0]}, np.array(offsets))
        for key, (ids, metrics, offsets) in found.items()
    }


def same_mean(mean: float | None, values: Floats) -> bool:
    return mean is not None and math.isclose(mean, float(values.mean()), rel_tol=1e-9, abs_tol=1e-12)


def describe(key: Key) -> str:
    """A row in words."""
    parts = [key.data, key.dim and f"{key.dim} dimensions", key.embedding_precision, key.order]
    return ", ".join(str(part) for part in parts if part)
