"""A label beside positives that does not call them relevant is never left out of training without a word."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nestling.records import Record, RecordTable, load_records

OWL, HEN = "Owls hunt at night.", "Hens sleep at night."
BIRD = "which bird hunts at night"
ROWS: tuple[dict[str, Any], ...] = (
    {"query": BIRD, "positives": [OWL]},
    {"query": BIRD, "pos": [OWL]},
    {"query": BIRD, "positive_passages": [{"text": OWL}]},
)


def load(folder: Path, *rows: Any, **options: Any) -> RecordTable:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(path, cache_dir=folder / "cache", **options)


def refusal(folder: Path, *rows: Any) -> str:
    with pytest.raises(ValueError, match=r"rows\.jsonl:") as error:
        load(folder, *rows)
    assert not list(folder.glob("cache/*"))
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    "label", [0, 0.0, False, "0", "no", "not relevant", "negative", 0.3, 3, -1, "2", [0], [True, 0]]
)
@pytest.mark.parametrize("row", ROWS)
def test_a_label_other_than_1_is_refused(tmp_path: Path, row: dict[str, Any], label: Any) -> None:
    """In a later row, since those before may be relevant."""
    message = refusal(tmp_path, row | {"label": 1}, row | {"label": label})
    query, positive = row
    field = "labels" if isinstance(label, list) else "label"
    assert message.startswith(
        f"rows.jsonl:2: label: holds {label}, a label other than 1 (a document that is not relevant belongs to the "
        "negatives), and dialect "
    )
    assert f"columns: {{query: {query}, positive: {positive}, {field}: label}} (scripts: --columns query=" in message


@pytest.mark.parametrize("field", ["labels", "score", "relevance", "is_relevant", "isRelevant", "similarity", "grade"])
@pytest.mark.parametrize("row", [*ROWS, {"query": BIRD, "positive": OWL}, {"question": BIRD, "answer": OWL}])
def test_by_any_name(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    graded_by = {"positives": ("score",), "positive": ("score", "labels"), "answer": ("score", "labels")}
    if field in graded_by.get(list(row)[1], ()):
        assert load(tmp_path, row | {field: 0})[0] == Record(BIRD, (OWL,), score=0.0)
    else:
        assert refusal(tmp_path, row | {field: 0}).startswith(f"rows.jsonl:1: {field}: holds 0, a label other than 1")


@pytest.mark.parametrize("label", [1, 1.0, True, "1", "yes", "relevant", "card_arrival", None, "", [1, 1], {"a": 0}])
def test_labels_that_leave_positives_positives_are_counted(tmp_path: Path, label: Any) -> None:
    for row in ROWS:
        (tmp_path / "rows.jsonl").unlink(missing_ok=True)
        table = load(tmp_path, row | {"label": label, "label_id": 0, "num_labels": 3, "quality_score": 0.5})
        assert table[0] == Record(BIRD, (OWL,))
        counted = {field for field, _ in table.summary.ignored}
        assert counted == {"label_id", "num_labels", "quality_score"} | ({"label"} if label is not None else set())


def test_the_line_that_is_printed_reads_the_labels(tmp_path: Path) -> None:
    rows = [{"query": BIRD, "positives": [text], "label": label} for text, label in ((OWL, 1), (HEN, 0))]
    named = re.search(r"--columns ([^)]+)\)", refusal(tmp_path, *rows))
    assert named is not None
    table = load(tmp_path, *rows, columns=dict(part.split("=") for part in named[1].split(",")))
    assert [table[0], table[1]] == [Record(BIRD, (OWL,), score=1.0), Record(BIRD, (HEN,), score=0.0)]
    listed = {"query": BIRD, "positives": [OWL, HEN], "labels": [1, 0]}
    columns = {"query": "query", "positive": "positives", "labels": "labels"}
    assert load(tmp_path, listed, columns=columns)[0] == Record(BIRD, (OWL,), (HEN,))


def test_tables_hold_labels_as_texts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f'query,positives,relevance\n{BIRD},"[""{OWL}""]",1\nq,"[""{HEN}""]",0\n')
    with pytest.raises(ValueError, match=r"rows\.csv:3: relevance: holds 0, a label other than 1"):
        load_records(tmp_path / "rows.csv", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("labels", "field"),
    [({"score": 0.2, "label": 1}, "label"), ({"label": [1], "labels": [0]}, "labels")],
)
def test_two_labels_of_one_pair_are_refused(tmp_path: Path, labels: dict[str, Any], field: str) -> None:
    message = refusal(tmp_path, {"query": BIRD, "positive": [OWL], **labels})
    other = next(iter(labels))
    assert message == f"rows.jsonl:1: {field}: beside {other}; expected one of the two, so remove or rename the other"
