"""Columns that the user names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nestling.records import Record, load_records

ROW = {"title": "q", "body": "p", "others": ["n", "m"], "points": [3, 2, 1], "note": "left out", "hard_negs": "x"}
NAMED = {"query": "title", "positive": "body"}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (NAMED, Record("q", ("p",))),
        ({"query": "title", "positives": "others"}, Record("q", ("n", "m"))),
        (NAMED | {"negatives": "others", "scores": "points"}, Record("q", ("p",), ("n", "m"), (3,), (2, 1))),
        (NAMED | {"negatives": "others", "negative_1": "hard_negs"}, Record("q", ("p",), ("n", "m", "x"))),
        (NAMED | {"instruction": "note"}, Record("q", ("p",), instruction="left out")),
    ],
)
def test_named_columns_are_read_and_no_others(tmp_path: Path, columns: dict[str, str], expected: Record) -> None:
    table = load_records(write(tmp_path, ROW), columns=columns, cache_dir=tmp_path / "cache")
    assert table[0] == expected
    assert {column for column, _ in table.summary.ignored} == ROW.keys() - set(columns.values())


def test_columns_are_part_of_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path, {"query": "a", "positive": "b"})
    assert load_records(path, cache_dir=tmp_path / "cache")[0] == Record("a", ("b",))
    turned = {"query": "positive", "positive": "query"}
    assert load_records(path, columns=turned, cache_dir=tmp_path / "cache")[0] == Record("b", ("a",))


def test_cells_of_tables_hold_lists(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('title,body,others,points\nq,p,"[""n"", ""m""]","[3, 2, 1]"\n')
    columns = NAMED | {"negatives": "others", "scores": "points"}
    table = load_records(tmp_path / "rows.csv", columns=columns, cache_dir=tmp_path / "cache")
    assert table[0] == Record("q", ("p",), ("n", "m"), (3,), (2, 1))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": "title"}, "columns: no column is named for positive; expected query, positive and some of"),
        (NAMED | {"documents": "others"}, "columns: unknown field 'documents'"),
        (NAMED | {"negatives": "negs"}, "rows.jsonl:2: columns: no row has 'negs'; this one has 'title', 'body'"),
        ({"query": "titel", "positive": "body"}, "rows.jsonl:1: columns: no column 'titel' for query; the row has"),
    ],
)
def test_refused_columns(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_records(write(tmp_path, ROW, ROW | {"title": "r"}), columns=columns, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"title": "q", "body": "p", "hardNegatives": ["n"]},
            "columns: {query: title, positive: body, negatives: hardNegatives} "
            "(scripts: --columns query=title,positive=body,negatives=hardNegatives)",
        ),
        (
            {
                "question": "q",
                "answers": ["a"],
                "positive_ctxs": [{"text": "p"}],
                "hard_negative_ctxs": [{"text": "n"}],
            },
            "columns: {query: question, positive: positive_ctxs, negatives: hard_negative_ctxs} (scripts",
        ),
        ({"id": 1, "Frage": "q", "die Antwort": "p"}, 'columns: {query: Frage, positive: "die Antwort"} (scripts'),
        ({"text": "a", "label": 3}, "columns: {query: text, positive: COLUMN} (scripts"),
    ],
)
def test_refusals_of_unknown_names_fill_the_line_in(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    path = write(tmp_path, row)
    with pytest.raises(ValueError, match=re.escape(line)) as error:
        load_records(path, cache_dir=tmp_path / "cache")
    named = re.search(r"--columns ([^)]+)\)", str(error.value))
    assert named is not None
    columns = dict(part.split("=") for part in named[1].split(","))
    if "COLUMN" not in columns.values():
        expected = Record("q", ("p",), ("n",) if "negatives" in columns else ())
        assert load_records(path, columns=columns, cache_dir=tmp_path / "cache")[0] == expected


def test_asks_whether_the_passage_or_the_span_is_retrieved(tmp_path: Path) -> None:
    passage = "The bridge was opened in 1902 after four years."
    path = write(tmp_path, {"question": "when was it opened", "context": passage, "answer": "1902"})
    with pytest.raises(ValueError, match="they fit pairs") as error:
        load_records(path, cache_dir=tmp_path / "cache")
    for document in ("context", "answer"):
        assert f"columns: {{query: question, positive: {document}}}" in str(error.value)
    columns = {"query": "question", "positive": "context"}
    assert load_records(path, columns=columns, cache_dir=tmp_path / "cache")[0].positives == (passage,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("upper.csv", "Question,Answer\nhow?,so\n"),
        ("semicolons.csv", "question;answer\nhow?;so\n"),
        ("tabs.csv", "Question\tAnswer\nhow?\tso\n"),
        ("spaces.csv", "QUESTION; ANSWER\nhow?;so\n"),
        ("upper.jsonl", '{"Query": "how?", "Positives": ["so"]}\n'),
        ("lists.csv", 'Query,Positives\nhow?,"[""so""]"\n'),
    ],
)
def test_headers_in_any_case_and_the_delimiter_of_the_header(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    table = load_records(tmp_path / name, cache_dir=tmp_path / "cache", progress=False)
    assert [(record.query, record.positives) for record in map(table.__getitem__, range(len(table)))] == [
        ("how?", ("so",))
    ]


def test_columns_that_are_named_keep_their_case(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Title;Body;query\na;b;c\n")
    columns = {"query": "Title", "positive": "Body"}
    table = load_records(tmp_path / "rows.csv", columns=columns, cache_dir=tmp_path / "cache", progress=False)
    assert (table[0].query, table[0].positives) == ("a", ("b",))
