"""Shapes of files that are easily misread: quotation marks, missing names, repeated keys, objects of several lines."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import Record, RecordTable, load_records, load_retrieval_set
from nestling.records.sources import read_rows


def load(folder: Path, name: str, content: str) -> RecordTable:
    (folder / name).write_text(content)
    return load_records(folder / name, cache_dir=folder / "cache")


def refusal(folder: Path, name: str, content: str) -> str:
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        load(folder, name, content)
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('first\t"We walked.\nsecond\tAnother\nthird\tThey walked."\nfourth\tLast\n', ['"We walked.', 'They walked."']),
        ('first\t"We" walked.\nthird\tp\n', ['"We" walked.', "p"]),
        ('first\t"We\nsecond"\tp\n', ['"We', "p"]),
        ('first\t"We walked.\n', ['"We walked.']),
        ('first\t"We ""walked""."\nsecond\t"a\tb"\n', ['We "walked".', "a\tb"]),
        ('first\t"We\nwalked."\nsecond\tp\n', ["We\nwalked.", "p"]),
    ],
)
def test_quotation_marks_in_tab_separated_files(tmp_path: Path, content: str, expected: list[str]) -> None:
    table = load(tmp_path, "rows.tsv", "query\tpositive\n" + content)
    texts = [table[row].positives[0] for row in range(len(table))]
    assert [text for text in texts if text not in ("Another", "Last")] == expected


def test_a_line_without_names_is_said_to_be_data(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rows.tsv", "which bird hunts at night\tOwls hunt.\tHens sleep.\nwhat is it\tp\tn\n")
    assert message == (
        "rows.tsv:2: header: the first line looks like data, not like names of columns: 'which bird hunts at night'; "
        "write a line of names above it, one for each of the 3 columns, such as query, positive and negative"
    )
    message = refusal(tmp_path, "rows.csv", f"{'long ' * 100},,\na,b,c\n")
    assert message.startswith("rows.csv:1: header: looks like data, not like names of columns: 'long long")
    assert len(message) < 250


def test_repeated_keys(tmp_path: Path) -> None:
    row = '{"query": "a", "positives": ["first"], "positives": ["second"]}'
    twice = "positives: given twice in one object; expected each key once"
    good = '{"query": "c", "positives": ["p"]}'
    assert refusal(tmp_path, "rows.jsonl", f"{good}\n{row}\n") == f"rows.jsonl:2: {twice}"
    assert refusal(tmp_path, "rows.json", f"[{good},\n{row}]") == f"rows.json:2: {twice}"
    inside = '{"query": "a", "positive_passages": [{"text": "p", "text": "r"}]}'
    assert refusal(tmp_path, "rows.jsonl", inside).startswith("rows.jsonl:1: text: given twice in one object")
    table = pa.table([["a"], [["first"]], [["second"]]], names=["query", "positives", "positives"])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet:1: positives: 2 columns of this name; expected one"):
        load_records(tmp_path / "rows.parquet", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_objects_of_several_lines(tmp_path: Path, name: str) -> None:
    rows = [{"query": f"q {i}", "positives": ["p"]} for i in range(3)]
    table = load(tmp_path, name, "\n".join(json.dumps(row, indent=1) for row in rows))
    assert [table[i].query for i in range(3)] == ["q 0", "q 1", "q 2"]
    assert [line for line, _ in read_rows(tmp_path / name, progress=False)] == [1, 7, 13]
    alone = refusal(tmp_path, name, json.dumps({"name": "x", "version": 1}, indent=1))
    assert alone.startswith(f"{name}:1: keys: found 'name', 'version'; no dialect has these")
    broken = refusal(tmp_path, name, '{"query": "q",\n "positives": ["p"]\n')
    assert broken.startswith(f"{name}:1: line: broken JSON")


SET = {
    "queries": {"q0": "which bird hunts at night", "q1": "what do otters eat", "q2": "not judged"},
    "corpus": {"d0": "Owls hunt at night.", "d1": {"title": "Otters", "text": "eat fish."}, "d2": "Larks sing."},
    "relevant_docs": {"q1": {"d1": 2, "d2": 0}, "q0": ["d0"]},
    "mode": "text",
}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_retrieval_set_in_one_object(tmp_path: Path, indent: int | None) -> None:
    table = load(tmp_path, "set.json", json.dumps(SET, indent=indent))
    assert [table[0], table[1]] == [
        Record("which bird hunts at night", ("Owls hunt at night.",)),
        Record("what do otters eat", ("Otters eat fish.",), ("Larks sing.",)),
    ]
    retrieval_set = load_retrieval_set(tmp_path / "set.json", "test")
    assert list(retrieval_set.documents) == ["Owls hunt at night.", "Otters eat fish.", "Larks sing."]
    assert (retrieval_set.query_ids, retrieval_set.document_ids) == (["q0", "q1"], ["d0", "d1", "d2"])
    assert retrieval_set.queries == ["which bird hunts at night", "what do otters eat"]
    assert [found.tolist() for found in (*retrieval_set.relevant, *retrieval_set.gains)] == [[0], [1], [1.0], [2.0]]
    assert (retrieval_set.summary.positives, retrieval_set.summary.negatives) == (2, 1)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"relevant_docs": {"q9": ["d0"]}}, "relevant_docs[q9]: there is no query of this id"),
        ({"relevant_docs": {"q0": ["d9"]}}, "relevant_docs[q0]: there is no document 'd9' in corpus"),
        ({"relevant_docs": {"q0": "d0"}}, "relevant_docs[q0]: expected a list of ids, or grades by ids"),
        ({"relevant_docs": {"q0": {"d0": "high"}}}, "relevant_docs[q0]: expected a number, got a text"),
        ({"corpus": {"d0": " ", "d1": "b", "d2": "c"}}, "corpus[d0]: the text is empty"),
    ],
)
def test_broken_retrieval_sets(tmp_path: Path, part: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, "set.json", json.dumps(SET | part)) == f"set.json:1: {message}"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_retrieval_set(tmp_path / "set.json", "test")


def test_a_second_retrieval_set_is_not_left_out(tmp_path: Path) -> None:
    row = json.dumps({"queries": {"q": "x"}, "corpus": {"d": "y"}, "relevant_docs": {"q": ["d"]}})
    (tmp_path / "sets.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(ValueError, match=r"sets.jsonl:2: line: more behind the retrieval set; expected one set"):
        load_retrieval_set(tmp_path / "sets.jsonl", "test", cache_dir=tmp_path)


@pytest.mark.parametrize("label", [1, 0, 0.5])
def test_grades_without_any_difference_are_refused(tmp_path: Path, label: float) -> None:
    rows = [{"question": f"q {i}", "answer": f"p {i}", "label": label} for i in range(4)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    message = refusal(tmp_path, "rows.jsonl", content)
    assert message.startswith(f"rows.jsonl:4: score: all 4 rows have the label {label:g}. Rows with a label or score")
    assert "train with CoSENT" in message and "columns: {query: question, positive: answer}" in message
    columns = {"query": "question", "positive": "answer"}
    table = load_records(tmp_path / "rows.jsonl", columns=columns, cache_dir=tmp_path / "cache")
    assert (table[0], table.graded) == (Record("q 0", ("p 0",)), False)
    assert load(tmp_path, "rows.jsonl", content + json.dumps(rows[0] | {"label": 0.9})).graded
