"""Groups of queries, as queries.jsonl names them."""

import json
from pathlib import Path

from nestling.records import load_retrieval_set
from nestling.records.query_groups import read_query_groups


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
    assert read_query_groups(tmp_path, ["q4", "q2", "q1", "q3", "q5"]) == [
        "manual",
        "query q2",
        "manual",
        "7",
        "query q5",
    ]
    write(tmp_path, {"_id": 7, "text": "a number", "metadata": {"group": 8}}, {"_id": 8, "text": "alone"})
    assert read_query_groups(tmp_path, ["7", "8"]) == ["8", "query 8"]


def test_a_set_whose_judged_queries_have_no_group_has_none(tmp_path: Path) -> None:
    write(tmp_path, {"_id": "q1", "text": "one", "metadata": {"group": "manual"}}, {"_id": "q2", "text": "two"})
    assert read_query_groups(tmp_path, ["q2"]) is None
    assert read_query_groups(tmp_path, ["q2", "q5"]) is None, "no judged query has a group"


def test_sets_without_groups_have_none(tmp_path: Path) -> None:
    assert read_query_groups(write(tmp_path, {"_id": "q1", "text": "one", "metadata": None}), ["q1"]) is None


def test_a_set_has_the_groups_of_its_judged_queries(tmp_path: Path) -> None:
    rows = [{"_id": f"q{i}", "text": f"query {i}", "metadata": {"group": f"manual {i % 2}"}} for i in range(4)]
    write(tmp_path, *rows)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "a document"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td\t1\nq0\td\t1\n")
    data = load_retrieval_set(tmp_path, "test")
    assert (list(data.query_ids), data.groups) == (["q0", "q3"], ["manual 0", "manual 1"])
    write(tmp_path, *({**row, "metadata": {}} for row in rows))
    assert load_retrieval_set(tmp_path, "test").groups is None
