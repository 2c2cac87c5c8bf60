"""Texts with an instruction of their own, [instruction, text], as GritLM and MEDI write them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import Record, RecordTable, load_records

TASK, PASSAGE = "Represent the question for retrieving passages:", "Represent the passage for retrieval:"
BIRD, OWL, HEN, LARK = "which bird hunts at night", "Owls hunt at night.", "Hens sleep.", "Larks sing at dawn."


def load(folder: Path, *rows: Any) -> RecordTable:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(path, cache_dir=folder / "cache")


@pytest.mark.parametrize(
    ("row", "expected", "counted"),
    [
        (  # GritLM
            {"query": [TASK, BIRD], "pos": [["", OWL], [" ", LARK]], "neg": [["", HEN]]},
            Record(BIRD, (OWL, LARK), (HEN,), instruction=TASK),
            (),
        ),
        (
            {"query": [TASK, BIRD], "pos": [[PASSAGE, OWL]], "neg": [[PASSAGE, HEN], ["", LARK]], "task_id": 3},
            Record(BIRD, (OWL,), (HEN, LARK), instruction=TASK),
            ("instruction in neg", "instruction in pos", "task_id"),
        ),
        (  # MEDI, as uniem reads it, and with the mark of INSTRUCTOR
            {"query": [TASK, BIRD], "pos": ["", OWL], "neg": [PASSAGE, HEN]},
            Record(BIRD, (OWL,), (HEN,), instruction=TASK),
            ("instruction in neg",),
        ),
        (
            {"query": [TASK, BIRD, 0], "pos": [PASSAGE, OWL, 1], "neg": [[PASSAGE, HEN, 1]]},
            Record(BIRD, (OWL,), (HEN,), instruction=TASK),
            ("instruction in neg", "instruction in pos"),
        ),
        (
            {"query": ["", BIRD], "pos": [["", OWL]], "neg": None, "prompt": TASK},
            Record(BIRD, (OWL,), instruction=TASK),
            (),
        ),
        (
            {"query": BIRD, "pos": [["", OWL], LARK, {"title": "Bats", "text": "fly."}], "pos_scores": [3, 2, 1]},
            Record(BIRD, (OWL, LARK, "Bats fly."), (), (3, 2, 1), None),
            (),
        ),
        ({"query": BIRD, "pos": [OWL, LARK]}, Record(BIRD, (OWL, LARK)), ()),
    ],
)
def test_pairs_are_read(tmp_path: Path, row: dict[str, Any], expected: Record, counted: tuple[str, ...]) -> None:
    table = load(tmp_path, row)
    assert (table[0], table.summary.dialect) == (expected, "FlagEmbedding")
    assert table.summary.ignored == tuple((name, 1) for name in counted)


def test_instructions_of_documents_are_counted_by_rows(tmp_path: Path) -> None:
    rows = [{"query": [TASK, f"q {i}"], "pos": [[PASSAGE, OWL], [PASSAGE, LARK]]} for i in range(3)]
    summary = str(load(tmp_path, *rows, {"query": [TASK, BIRD], "pos": [["", OWL]]}).summary)
    assert "ignored field 'instruction in pos' in 3 rows" in summary


def test_pairs_in_parquet_files(tmp_path: Path) -> None:
    table = pa.table({"query": [[TASK, BIRD]], "pos": [[["", OWL]]], "neg": [[["", HEN], ["", LARK]]]})
    pq.write_table(table, tmp_path / "rows.parquet")
    record = load_records(tmp_path / "rows.parquet", cache_dir=tmp_path / "cache")[0]
    assert record == Record(BIRD, (OWL,), (HEN, LARK), instruction=TASK)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": [TASK], "pos": [OWL]}, "query: expected a text, or [instruction, text]"),
        ({"query": [[TASK, BIRD]], "pos": [OWL]}, "query: expected a text, or [instruction, text]"),
        ({"query": [TASK, " "], "pos": [["", OWL]]}, "query[1]: the text is empty"),
        ({"query": [TASK, BIRD], "pos": [["", ""]]}, "pos[0]: the text is empty"),
        ({"query": [TASK, BIRD], "pos": [["", OWL, "n"]]}, "pos[0]: expected a text, or [instruction, text]"),
        ({"query": BIRD, "pos": [[OWL]]}, "pos[0]: expected a text, or [instruction, text]"),
        (
            {"query": [TASK, BIRD], "pos": [["", OWL]], "neg": [HEN, LARK, OWL]},
            "neg: the query is [instruction, text]; expected one such pair, or a list of them, got a list of texts",
        ),
        (
            {"query": [TASK, BIRD], "pos": [["", OWL]], "prompt": PASSAGE},
            "prompt: differs from the instruction in query; expected one of the two",
        ),
        ({"query": [TASK, BIRD], "positives": [OWL]}, "query: expected a text, got a list"),
    ],
)
def test_refused_pairs(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: ") as error:
        load(tmp_path, row)
    assert str(error.value).endswith(f"rows.jsonl:1: {message}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": BIRD, "text_pos": OWL}, Record(BIRD, (OWL,))),
        ({"text": BIRD, "text_pos": OWL, "text_neg": HEN}, Record(BIRD, (OWL,), (HEN,))),
        ({"text": BIRD, "text_pos": OWL, "text_neg": [HEN, LARK]}, Record(BIRD, (OWL,), (HEN, LARK))),
        ({"text": BIRD, "text_pos": OWL, "score": 0.4}, Record(BIRD, (OWL,), score=0.4)),
        ({"text": BIRD, "text_pair": OWL, "label": 0.4}, Record(BIRD, (OWL,), score=0.4)),
    ],
)
def test_rows_of_uniem(tmp_path: Path, row: dict[str, Any], expected: Record) -> None:
    assert load(tmp_path, row)[0] == expected


def test_a_text_and_its_pair_without_a_label(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:1: score: missing.* columns: {query: text, positive: text_pair}"
    ):
        load(tmp_path, {"text": BIRD, "text_pair": OWL})
