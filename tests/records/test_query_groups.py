"""Groups of queries, as queries.jsonl names them."""

import json
from pathlib import Path

import pytest

from nestling.records import read_query_groups


def write(folder: Path, *rows: dict[str, object]) -> Path:
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_groups_are_in_the_order_of_the_queries_and_others_are_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"_id": "q1", "text": "one", "metadata": {"group": "manual", "page": 3}},
        {"_id": "q2", "text": "two", "metadata": {}},
        {"_id": "q3", "text": "three", "metadata": {"group": 7}},
        {"_id": "q4", "text": "four", "metadata": {"group": "manual"}},
        {"_id": "q5", "text": "five"},
    )
    assert read_query_groups(tmp_path, ["q4", "q2", "q1", "q3", "q5"]) == ["manual", "q2", "manual", "7", "q5"]
    assert read_query_groups(tmp_path, ["q2", "q5"]) is None, "no judged query has a group"


def test_sets_without_groups_have_none(tmp_path: Path) -> None:
    assert read_query_groups(write(tmp_path, {"_id": "q1", "text": "one", "metadata": None}), ["q1"]) is None
    assert read_query_groups(tmp_path / "set.json", ["q1"]) is None
    (tmp_path / "queries.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"queries\.jsonl:1: "):
        read_query_groups(tmp_path, ["q1"])
