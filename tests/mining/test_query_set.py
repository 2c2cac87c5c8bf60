"""Distinct queries, and their positives over all records."""

from pathlib import Path

import numpy as np

from mining.small import opened, random_rows, write_rows
from nestling.mining.candidates import union_candidates
from nestling.mining.retrieved import Retrieved
from nestling.mining.rules import drop_known_and_repeated, positives_in_pool
from nestling.mining.selection import CandidateFilter
from nestling.records import text_id
from nestling.records.record import query_id


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
    assert query_set.identities.tolist() == [text_id("b"), query_id("a", "t"), query_id("b", "t")]
    assert [each.tolist() for each in map(query_set.known_positives.__getitem__, range(3))] == [
        sorted(map(text_id, ["1", "4"])),
        sorted(map(text_id, ["2", "5"])),
        [text_id("3")],
    ]


def test_the_positive_of_one_instruction_is_a_candidate_of_another(tmp_path: Path) -> None:
    rows = [
        {"query": "jaguar", "positives": ["a cat"], "instruction": "Find the animal"},
        {"query": "jaguar", "positives": ["a car"], "instruction": "Find the brand"},
        {"query": "jaguar", "positives": ["a big cat"], "instruction": "Find the animal"},
    ]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    everything = np.broadcast_to(np.arange(3), (2, 3))
    candidates = union_candidates({"all": Retrieved(everything, np.ones((2, 3), np.float32))})
    candidate_filter = CandidateFilter(len(candidates))
    drop_known_and_repeated(candidate_filter, query_set, pool, positives_in_pool(query_set, pool), candidates)
    left = np.flatnonzero(candidate_filter.remaining)
    assert candidates.queries[left].tolist() == [0, 1, 1]
    assert [pool.texts[i] for i in candidates.documents[left].tolist()] == ["a car", "a cat", "a big cat"]


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
