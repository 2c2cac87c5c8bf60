"""Reads what scripts/evaluate.py wrote: a result file and, beside it, the details of each query.

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

# The metric of summaries and charts, and by which queries are chosen as examples.
METRIC = "nDCG@10"


class ResultKey(NamedTuple):
    """Identifies a row of a results table: what was measured, and how.

    Args:
        data: Name of the retrieval set.
        dim: Dimension of the embeddings; None where there are none.
        embedding_precision: Precision of the embeddings; None where there are none.
        order: Which ranking of a reranker's candidates: "first stage", "reranked" or "fused"; None without a reranker.
    """

    data: str
    dim: int | None
    embedding_precision: str | None
    order: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ResultKey":
        """The key of a table row, or of a line of the details file."""
        return cls(row["data"], row["dim"], row["embedding_precision"], row.get("order"))


@dataclass(frozen=True)
class PerQuery:
    """Metrics of each query for one row of the results table.

    Attributes:
        ids: Q query ids.
        metrics: [Q] float64 for each metric.
        offsets: [Q] int64, byte offset of each query's line in the details file.
        groups: Of each query the group of queries that are like it; None where the set names none.
    """

    ids: Sequence[str]
    metrics: Mapping[str, Floats]
    offsets: np.ndarray
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class Result:
    """A result file.

    Attributes:
        name: Name of the file, without .json.
        config: Settings of the evaluation.
        metrics: Mean metrics of each row of the results table.
        query_counts: Number of queries of each row.
        details: The details file beside it; None if there is none.
        per_query: Metrics of each query for each row, from the details file; empty without it.
        traffic: What was asked of servers and what that took, of scripts/serve_eval.py; empty for others.
    """

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[ResultKey, Mapping[str, float]]
    query_counts: Mapping[ResultKey, int]
    details: Path | None
    per_query: Mapping[ResultKey, PerQuery]
    traffic: Sequence[Mapping[str, Any]] = ()

    @property
    def datasets(self) -> list[str]:
        """Names of the retrieval sets, in the order of the table."""
        return list(dict.fromkeys(key.data for key in self.metrics))

    def main_keys(self, data: str) -> list[ResultKey]:
        """The rows that represent the result on a set: those of the largest dimension and the first precision.

        For a reranker these are its orders, the first stage first. Empty if the set was not measured.
        """
        keys = [key for key in self.metrics if key.data == data]
        largest = max((key.dim or 0 for key in keys), default=0)
        full_size = [key for key in keys if (key.dim or 0) == largest]
        return [key for key in full_size if key.embedding_precision == full_size[0].embedding_precision]

    def main_key(self, data: str) -> ResultKey:
        """The one row that represents the result on a set: for a reranker the order "reranked"."""
        keys = self.main_keys(data)
        return next((key for key in keys if key.order == "reranked"), keys[0])

    def detail_lines(self, key: ResultKey, queries: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """Read the lines of the details file for a row of the table: of the queries with these indices, or of all."""
        assert self.details is not None
        per_query = self.per_query[key]
        with self.details.open("rb") as stream:
            for query in range(len(per_query.ids)) if queries is None else queries:
                stream.seek(int(per_query.offsets[query]))
                yield json.loads(stream.readline())


def read_result(path: Path) -> Result:
    """Read a result file and, if there is one beside it, its details file.

    Raises:
        ValueError: There is no such file, it is not a result file, or the details do not belong to it.
    """
    require(path.is_file(), f"{path}: no such file; expected one that scripts/evaluate.py --output wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {ResultKey.of(row): row for row in content["results"]}
        metrics = {key: {name: float(value) for name, value in row["metrics"].items()} for key, row in rows.items()}
        query_counts = {key: int(row["queries"]) for key, row in rows.items()}
        config, traffic = dict(content["config"]), list(content.get("traffic", []))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a result of scripts/evaluate.py --output") from None
    require(bool(metrics), f"{path}: it holds no result")
    details = details_path(path) if details_path(path).is_file() else None
    per_query = {} if details is None else read_details(details)
    for key, each in per_query.items():
        require(
            key in metrics and all(same_mean(metrics[key].get(name), values) for name, values in each.metrics.items()),
            f"{details}: its means are not the results of {path} ({describe(key)}); evaluate again, or remove it",
        )
    return Result(path.stem, config, metrics, query_counts, details, per_query, traffic)


def read_details(path: Path) -> dict[ResultKey, PerQuery]:
    """Read the metrics of every query for every row of the table; texts and scores are left in the file.

    Raises:
        ValueError: `file:line: reason` for a line that scripts/evaluate.py did not write.
    """
    columns: dict[ResultKey, tuple[list[str], list[dict[str, float]], list[int], list[str | None]]] = {}
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                fields = json.loads(line)
                ids, metrics, offsets, groups = columns.setdefault(ResultKey.of(fields), ([], [], [], []))
                ids.append(fields["query_id"])
                groups.append(fields.get("group"))
                metrics.append(fields["metrics"])
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(f"{path}:{number}: not a line that scripts/evaluate.py --details wrote") from None
            offsets.append(offset)
            offset += len(line)
    return {key: per_query(*each) for key, each in columns.items()}


def per_query(
    ids: list[str], metrics: list[dict[str, float]], offsets: list[int], groups: list[str | None]
) -> PerQuery:
    """The lines of a row of the table as columns."""
    named = [group for group in groups if group is not None]
    columns = {name: np.array([each[name] for each in metrics]) for name in metrics[0]}
    return PerQuery(ids, columns, np.array(offsets), named if len(named) == len(groups) else None)


def same_mean(mean: float | None, values: Floats) -> bool:
    """Whether `mean` is the mean of the [Q] values, up to rounding."""
    return mean is not None and math.isclose(mean, float(values.mean()), rel_tol=1e-9, abs_tol=1e-12)


def describe(key: ResultKey) -> str:
    """A key in words: "set/test, 8 dimensions, float32"."""
    parts = [key.data, key.dim and f"{key.dim} dimensions", key.embedding_precision, key.order]
    return ", ".join(str(part) for part in parts if part)
