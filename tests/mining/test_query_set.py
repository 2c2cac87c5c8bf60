"""Distinct queries, and their positives over all records."""

from pathlib import Path

from mining.small import opened, random_rows, write_rows
from nestling.records import text_id


def test_a_text_with_its_instruction_is_one_query(tmp_path: Path) -> None:
    rows = [
        {"query": "b", "positives": ["1"]},
        {"query": "a", "positives": ["2"], "instruction": "t"},
        {"query": "b", "positives": ["3"], "instruction": "t"},
        {"query": "b", "positives": ["4", "1"]},
        {"query": "a", "positives": ["5"], "instruction": "t"},
    ]
    _, query_set, _ = opened(write_rows(tmp_path / "rows.jsonl", rows))
    assert list(query_set.texts) == ["b", "a", "b"]
    assert query_set.instructions == [None, "t", "t"]
    assert query_set.query_of_record.tolist() == [0, 1, 2, 0, 1]
    assert query_set.identities.tolist() == [text_id("b"), text_id("a"), text_id("b")]
    everything = sorted(map(text_id, ["1", "3", "4"]))
    assert [each.tolist() for each in map(query_set.known_positives.__getitem__, range(3))] == [
        everything,
        sorted(map(text_id, ["2", "5"])),
        everything,
    ]


def test_equal_to_a_loop_over_the_records(tmp_path: Path) -> None:
    table, query_set, _ = opened(write_rows(tmp_path / "rows.jsonl", random_rows(90)))
    seen: dict[tuple[str, str | None], int] = {}
    for row in range(len(table)):
        record = table[row]
        assert query_set.query_of_record[row] == seen.setdefault((record.query, record.instruction), len(seen))
        assert query_set.texts[query_set.query_of_record[row]] == record.query
        own = {text_id(text) for text in record.positives}
        assert own <= set(query_set.known_positives[query_set.query_of_record[row]].tolist())
    assert len(query_set) == len(seen) < len(table)
