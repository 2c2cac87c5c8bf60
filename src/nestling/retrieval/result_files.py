"""The files of scripts/evaluate.py, which training writes for its dev sets too, and which reports read.

A JSON file holds the settings and a row for each measurement; the details of each row's queries stand beside it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestling import __version__
from nestling.config import details_path
from nestling.files import replace_text, write_jsonl
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.details import RetrievalDetails, detail_lines
from nestling.retrieval.metrics import RelevantRanks, mean_metrics


@dataclass(frozen=True)
class ResultRow:
    """The metrics of one set, at one dimension and precision or in one order.

    Attributes:
        data: Name of the set.
        queries: Number of its queries.
        documents: Number of its documents.
        dim: Dimension of the embeddings; None where there are none.
        embedding_precision: Precision of the embeddings; None where there are none.
        metrics: Mean of each metric over the queries.
        truncated_queries: Number of truncated queries.
        truncated_documents: Number of truncated documents; for a reranker, of truncated candidates.
        query_max_length: Tokens at which a model's queries were cut; None without an embedding model.
        document_max_length: Tokens at which its documents were cut.
        order: Of a reranker's candidates: "first stage", "reranked" or "fused"; None without a reranker.
    """

    data: str
    queries: int
    documents: int
    dim: int | None
    embedding_precision: str | None
    metrics: Mapping[str, float]
    truncated_queries: int = 0
    truncated_documents: int = 0
    query_max_length: int | None = None
    document_max_length: int | None = None
    order: str | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells the row from the others of a file."""
        names = ("data", "dim", "embedding_precision", "order")
        return {name: getattr(self, name) for name in names}


# A row, the set that was measured, and a function that computes the details of its queries.
Measurement = tuple[ResultRow, RetrievalSet, Callable[[], RetrievalDetails]]


def result_row(
    data: RetrievalSet,
    ranks: RelevantRanks,
    dim: int | None = None,
    embedding_precision: str | None = None,
    lengths: tuple[int, int, int | None, int | None] | None = None,
) -> ResultRow:
    """The row of a set; `lengths` are its numbers of truncated queries and documents, and their limits."""
    queries, documents, query_limit, document_limit = lengths or (0, 0, None, None)
    return ResultRow(
        data=data.name,
        queries=len(data.queries),
        documents=len(data.documents),
        dim=dim,
        embedding_precision=embedding_precision,
        metrics=mean_metrics(ranks),
        truncated_queries=queries,
        truncated_documents=documents,
        query_max_length=query_limit,
        document_max_length=document_limit,
    )


def results_table(rows: Sequence[ResultRow]) -> str:
    """The results as a table: a row for each set, dimension and embedding precision, or for each set and order."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    width = max(len(row.data) for row in rows)
    reranked = rows[0].order is not None
    heading = f"{'order':11}" if reranked else f"{'dim':>5}  {'embedding_precision':19}"
    lines = [f"\n{'':{width}}  {heading}  " + "  ".join(f"{name:>10}" for name in metrics)]
    for row in rows:
        values = "  ".join(f"{row.metrics.get(name, math.nan):10.4f}" for name in metrics)
        what = f"{row.order:11}" if reranked else f"{row.dim or '-':>5}  {row.embedding_precision or '-':19}"
        lines.append(f"{row.data:{width}}  {what}  {values}")
    return "\n".join(lines)


def write_results(path: Path, config: Mapping[str, Any], rows: Iterable[ResultRow], **more: Any) -> None:
    """Write settings and rows, and what else is given by name, as JSON, atomically."""
    content = {"nestling": __version__, "config": config, "results": [asdict(row) for row in rows], **more}
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_details(results: Path, measurements: Iterable[Measurement]) -> list[ResultRow]:
    """Write the details beside a file of results, a line for each query of each row; returns the rows."""
    rows: list[ResultRow] = []

    def lines() -> Iterator[dict[str, Any]]:
        for row, data, details in measurements:
            rows.append(row)
            yield from ({**row.key, **line} for line in detail_lines(details(), data))

    write_jsonl(details_path(results), lines())
    return rows
