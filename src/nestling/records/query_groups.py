"""Groups of queries that are alike, such as those of one manual or one module, as a BEIR folder's queries name them."""

from collections.abc import Collection
from pathlib import Path

from nestling.records.json_files import read_jsonl
from nestling.records.lines import read_lines


def read_query_groups(folder: str | Path, query_ids: Collection[str]) -> list[str] | None:
    """The group of each query, in their order: `metadata.group` in queries.jsonl; None where no query has one.

    A query without one is alone: its group is named by its id.
    """
    path = Path(folder) / "queries.jsonl"
    if not any('"group"' in line for _, line in read_lines(path)):  # most files, of up to millions of queries
        return None
    wanted, found = set(query_ids), dict[str, str]()
    for _, row in read_jsonl(path):
        metadata = row.get("metadata")
        identifier = str(row.get("_id"))  # as it is read elsewhere, where numbers are ids too
        if isinstance(metadata, dict) and metadata.get("group") is not None and identifier in wanted:
            found[identifier] = str(metadata["group"])
    return [found.get(query, alone(query)) for query in query_ids] if found else None


def alone(query: str) -> str:
    """The name of the group of a query that has none."""
    return f"query {query}"
