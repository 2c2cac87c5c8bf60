"""Every dialect gives the same record, and invalid rows are refused with location and reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nestling.records import Record, RecordTable, load_records

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "data.md"
BOILS, FREEZES = "At 3,000 metres water boils at 90 degrees.", "Water freezes at 0 degrees."
SUMMIT, TASK = "boiling point on a summit", "Retrieve the passage that answers the question"


def row_of_the_page(dialect: str) -> str:
    """The literal row that follows a dialect's name in docs/data.md."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^\*\*{re.escape(dialect)}\*\*.*?```json\n(.*?)\n```", page, re.M | re.S)
    assert found is not None, dialect
    return found[1]


def load(folder: Path, *rows: Any, name: str = "rows.jsonl", **options: Any) -> RecordTable:
    """Write rows (objects, or raw lines) to a file and load it."""
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return load_records(path, cache_dir=folder / "cache", **options)


def refusal(folder: Path, *rows: Any, **options: Any) -> str:
    """The message of the refusal, without the folder."""
    with pytest.raises(ValueError, match=re.escape(f"{folder}/rows.jsonl:")) as error:
        load(folder, *rows, **options)
    assert not list(folder.glob("cache/*")), "a refused file leaves nothing in the cache"
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("nestling", Record(SUMMIT, (BOILS,), (FREEZES,), (0.9,), (0.2,), TASK)),
        ("sentence-transformers", Record(SUMMIT, (BOILS,), (FREEZES, "Summits are cold."))),
        ("Graded pairs", Record("A man plays a guitar.", ("Someone makes music.",), score=3.6)),
        ("Pairs", Record(SUMMIT, (BOILS,))),
        ("FlagEmbedding", Record(SUMMIT, (BOILS,), (FREEZES,), (0.9,), (0.2,), TASK)),
        ("ms-swift response", Record(SUMMIT, (BOILS,), (FREEZES,))),
        ("ms-swift messages", Record(SUMMIT, (BOILS,), (FREEZES,), instruction=TASK)),
        ("Tevatron", Record(SUMMIT, ("Water At 3,000 metres it boils at 90 degrees.",), ("Ice " + FREEZES,))),
    ],
)
def test_rows_of_the_page_load(tmp_path: Path, dialect: str, expected: Record) -> None:
    table = load(tmp_path, row_of_the_page(dialect))
    assert [table[0]] == [expected]
    assert table.summary.dialect.lower() == dialect.lower()
    assert table.graded == (expected.score is not None)
    assert table.has_scores == (expected.positive_scores is not None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "q", "positive": "p", "negative": "n"}, Record("q", ("p",), ("n",))),
        (
            {
                "anchor": "q",
                "positive": "p",
                "negative_10": "c",
                "negative_2": "b",
                "negative": "a",
                "negative_3": None,
            },
            Record("q", ("p",), ("a", "b", "c")),
        ),
        (
            {"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b", "scores": [3, 2, 1.5]},
            Record("q", ("p",), ("a", "b"), (3.0,), (2.0, 1.5)),
        ),
        (
            {"query": "q", "response": "p", "rejected_response": "n", "system": "s"},
            Record("q", ("p",), ("n",), None, None, "s"),
        ),
        ({"query": "q", "response": "p", "label": 0}, Record("q", ("p",), score=0.0)),
        ({"query": "q", "answer": "p", "label": 0}, Record("q", ("p",), score=0.0)),
        ({"question": "q", "passage": "p", "score": 0.3}, Record("q", ("p",), score=0.3)),
        ({"anchor": "q", "positive": "p", "label": 1, "score": None}, Record("q", ("p",), score=1.0)),
        (
            {
                "messages": [{"role": "user", "content": "q"}],
                "positive_messages": [[{"role": "user", "content": "p"}]],
                "label": 0.8,
            },
            Record("q", ("p",), score=0.8),
        ),
        ({"query": "q", "positives": ["p"], "score": 5}, Record("q", ("p",), score=5.0)),
        ({"query": "q", "positives": ["p"], "instruction": ""}, Record("q", ("p",))),
        ({"query": "q", "positive_passages": [{"title": "", "text": " p "}]}, Record("q", ("p",))),
        ({"query": "q", "pos": ["p"], "neg": None, "pos_scores": None, "type": "normal"}, Record("q", ("p",))),
        ({"query": "q", "positive": "p", "answer": "a"}, Record("q", ("p",))),
        ({"query": " q\n", "positives": ["p\u0000", "\U0001f600"]}, Record(" q\n", ("p\u0000", "\U0001f600"))),
    ],
)
def test_variants(tmp_path: Path, row: dict[str, Any], expected: Record) -> None:
    assert load(tmp_path, row)[0] == expected


GOOD = {"query": "q", "positives": ["p"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"positives": ["p"]}, "query: missing, in a file of dialect nestling"),
        ({"query": None, "positives": ["p"]}, "query: missing"),
        ({"query": "", "positives": ["p"]}, "query: the text is empty"),
        ({"query": " \t\u3000", "positives": ["p"]}, "query: the text is empty"),
        ({"query": 7, "positives": ["p"]}, "query: expected a text, got int 7"),
        ({"query": "q", "positives": "p"}, "positives: expected a list of texts, got a text"),
        ({"query": "q", "positives": []}, "positives: the list is empty"),
        ({"query": "q", "positives": None}, "positives: missing"),
        ({"query": "q", "positives": ["p", None]}, "positives[1]: expected a text, got null"),
        ({"query": "q", "positives": ["p"], "negatives": ["n", " "]}, "negatives[1]: the text is empty"),
        ({"query": "q", "positives": ["p"], "positive_scores": [1, 2]}, "positive_scores: 2 scores for 1 texts"),
        ({"query": "q", "positives": ["p"], "negative_scores": [1]}, "negative_scores: 1 scores for 0 texts"),
        ({"query": "q", "positives": ["p"], "positive_scores": [True]}, "positive_scores[0]: expected a number"),
        ({"query": "q", "positives": ["p"], "positive_scores": 1}, "positive_scores: expected a list of numbers"),
        (
            '{"query": "q", "positives": ["p"], "positive_scores": [NaN]}',
            "positive_scores[0]: expected a finite number",
        ),
        ('{"query": "q", "positives": ["p"], "score": -Infinity}', "score: expected a finite number, got -inf"),
        (
            {"query": "q", "positives": ["p"], "score": 1},
            "score: a graded pair in a file that began with a row without",
        ),
        ({"query": "q", "positives": ["p"], "negatives": ["n"], "score": 1}, "score: a graded pair has one positive"),
        ({"query": "q", "positives": ["p"], "negatvies": ["n"]}, "negatvies: not a field of dialect nestling; did you"),
        ({"query": "q", "pos": ["p"]}, "positives: missing, in a file of dialect nestling; the row is FlagEmbedding"),
        ('{"query": "q", "positives": ["p"]', "line: broken JSON: Expecting ',' delimiter at character 35 of the row"),
        (
            {"query": "q", "positives": ["p"], "positive_scores": [10**400]},
            "positive_scores[0]: expected a finite number, got 1000",
        ),
        (
            '{"query": "q", "positives": ["p"], "score": ' + "9" * 5000 + "}",
            "line: broken JSON: Exceeds the limit (4300 digits)",
        ),
        ("[1]", "line: expected an object with named fields, got list"),
        ('{"query": "q", "positives": ["\\ud800"]}', "positives[0]: half of a surrogate pair"),
        ("[" * 100_000, "line: broken JSON"),
    ],
)
def test_refused_with_line_field_and_reason(tmp_path: Path, row: Any, message: str) -> None:
    """The bad row comes third, behind a good one and a blank line."""
    assert refusal(tmp_path, GOOD, "", row).startswith(f"rows.jsonl:3: {message}")


ONLY_NEGATIVES: dict[str, dict[str, Any]] = {
    "nestling": {"query": "q", "positives": [], "negatives": ["n"], "positive_scores": [], "negative_scores": [0.5]},
    "FlagEmbedding": {"query": "q", "pos": [], "neg": ["n"], "pos_scores": [], "neg_scores": [0.5]},
    "ms-swift messages": {
        "messages": [{"role": "user", "content": "q"}],
        "positive_messages": [],
        "negative_messages": [[{"role": "user", "content": "n"}]],
    },
    "Tevatron": {"query": "q", "positive_passages": [], "negative_passages": [{"text": "n"}]},
}


@pytest.mark.parametrize("dialect", ONLY_NEGATIVES)
def test_rows_of_negatives_only_are_read_if_allowed(tmp_path: Path, dialect: str) -> None:
    row = ONLY_NEGATIVES[dialect]
    field = next(key for key in row if key.startswith("pos"))
    for absent, reason in (([], "the list is empty; expected at least one"), (None, "missing")):
        given = {key: value for key, value in row.items() if key != "positive_scores" or absent is not None}
        message = refusal(tmp_path, {**given, field: absent})
        assert (
            message
            == f"rows.jsonl:1: {field}: {reason}; rows that have only negatives can train rerankers, not embedders"
        )
    table = load(tmp_path, {**row, field: None}, row, allow_no_positives=True)
    scores = None if dialect in ("ms-swift messages", "Tevatron") else (0.5,)
    assert (table[0].query, table[0].positives, table[0].negatives, table[0].negative_scores) == (
        "q",
        (),
        ("n",),
        scores,
    )
    assert (table.summary.dialect, table.summary.rows_without_positives) == (dialect, len(table))
    assert table.has_scores == (scores is not None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "positives": [], "negatives": []}, "positives: the list is empty; expected at least one"),
        ({"query": "q", "positives": [], "negatives": None}, "positives: the list is empty; expected at least one"),
        ({"query": "q", "positives": None}, "positives: missing"),
        ({"query": "q", "negatives": ["n"]}, "positives: missing, in a file of dialect nestling"),
        ({"query": "q", "positives": [], "negatives": ["n"], "score": 1}, "score: a graded pair has one positive"),
        ({"query": "q", "positives": [], "negatives": [" "]}, "negatives[0]: the text is empty"),
    ],
)
def test_rows_without_any_document_are_always_refused(tmp_path: Path, row: Any, message: str) -> None:
    assert refusal(tmp_path, GOOD, row, allow_no_positives=True).startswith(f"rows.jsonl:2: {message}")


def test_rows_of_negatives_only_in_tables(tmp_path: Path) -> None:
    rows = 'query,positives,negatives\nq,,"[""n""]"\nr,[],"[""n""]"\ns,"[""p""]",\n'
    (tmp_path / "rows.csv").write_text(rows)
    table = load_records(tmp_path / "rows.csv", cache_dir=tmp_path / "cache", allow_no_positives=True)
    assert [table[i] for i in range(3)] == [Record("q", (), ("n",)), Record("r", (), ("n",)), Record("s", ("p",))]


def test_a_missing_answer_is_always_refused(tmp_path: Path) -> None:
    row = {"query": "q", "response": None, "rejected_response": ["n"]}
    assert refusal(tmp_path, row, allow_no_positives=True) == "rows.jsonl:1: response: missing"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "q", "positive": "p", "negative_1": ""}, "negative_1: the text is empty"),
        (
            {"anchor": "q", "positive": "p", "negatvies": ["n"]},
            "negatvies: not a field of dialect sentence-transformers; did you mean 'negatives'?",
        ),
        ({"anchor": "q", "positive": "p", "scores": [1, 2]}, "scores: 2 scores for 1 texts in positive and negatives"),
        ({"sentence1": "a", "sentence2": "b", "score": None}, "score: missing"),
        ({"query": "q", "response": "p", "rejected_response": [3]}, "rejected_response[0]: expected a text"),
        ({"query": "q", "response": "p", "images": ["a.png"]}, "images: only texts can be read"),
        ({"messages": "q", "positive_messages": []}, "messages: expected a list of messages"),
        (
            {"messages": [{"role": "user", "content": "q"}], "positive_messages": []},
            "positive_messages: the list is empty",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "positive_messages": []},
            "messages: 2 messages and 0 system messages",
        ),
        (
            {
                "messages": [{"role": "user", "content": "q"}],
                "positive_messages": [[{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]],
            },
            "positive_messages[0]: a system message in a document",
        ),
        (
            {"messages": [{"role": "tool", "content": "q"}], "positive_messages": []},
            "messages: role 'tool'; expected user",
        ),
        (
            {"query": "q", "positive_passages": [{"title": " ", "text": ""}]},
            "positive_passages[0]: text: the text is empty",
        ),
        ({"query": "q", "positive_passages": [{"docid": "1"}]}, "positive_passages[0]: text: missing"),
        ({"query": "q", "positive_passages": [{"text": 3}]}, "positive_passages[0]: text: expected a text, got int 3"),
        ({"query": "q", "positive_passages": ["p"]}, "positive_passages: expected a list of objects"),
        (
            {"query": "q", "positives": ["p"], "pos": ["p"]},
            "keys: found 'query', 'positives', 'pos'; they fit nestling",
        ),
        ({"query": "q", "question": "q", "answer": "a"}, "keys: found 'query', 'question', 'answer'; they fit pairs"),
        (
            {"sentence1": "a", "sentence2": "b"},
            "score: missing, or a field label; to train the pairs as positives name them: columns: {query: sentence1,",
        ),
        (
            {"qeury": "a", "positives": ["b"]},
            "keys: found 'qeury', 'positives'; no dialect has these. Nearest: nestling",
        ),
        (
            {"_id": "d1", "title": "", "text": "a"},
            "keys: these are the documents or queries of a retrieval set; give its",
        ),
        (
            {"query-id": "q", "corpus-id": "d", "score": 1},
            "keys: these are the judgements of a retrieval set; give its",
        ),
        ({}, "keys: found none; no dialect has these."),
    ],
)
def test_first_row_refused(tmp_path: Path, row: Any, message: str) -> None:
    assert refusal(tmp_path, row).startswith(f"rows.jsonl:1: {message}")


def test_unknown_dialect_lists_all(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"text": "a", "label": 3})
    for name in ("nestling", "sentence-transformers", "graded pairs", "FlagEmbedding", "ms-swift", "Tevatron", "pairs"):
        assert name in message


def test_unknown_fields_are_counted(tmp_path: Path) -> None:
    table = load(tmp_path, GOOD | {"source": "a"}, GOOD | {"query": "r", "source": None}, GOOD | {"query": "s", "n": 1})
    assert table.summary.ignored == (("n", 1), ("source", 1))
    assert "ignored field 'source' in 1 rows" in str(table.summary)


def test_instruction_of_row_beats_the_datasets(tmp_path: Path) -> None:
    table = load(tmp_path, GOOD, {"query": "r", "positives": ["p"], "instruction": "own"}, instruction="default")
    assert [table[0].instruction, table[1].instruction] == ["default", "own"]
    again = load_records(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache", instruction="other")
    assert again[0].instruction == "other", "the dataset's instruction is no part of the cache"


def test_committed_sample_loads(tmp_path: Path) -> None:
    table = load_records(ROOT / "data" / "sample.jsonl", cache_dir=tmp_path)
    assert (len(table), table.name, table.summary.dialect, table.summary.rows_scored) == (20, "sample", "nestling", 3)
    assert not table.summary.drops and not table.summary.ignored and not table.has_scores
