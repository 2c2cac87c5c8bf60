"""Queries of a dev set that are trained on are told, with those whose answer is too."""

import json
from pathlib import Path

from nestling.batches.sampling import Source
from nestling.config import DevData
from nestling.records import load_records
from nestling.training.dev_sets import load_dev_set
from nestling.training.leaks import leak_note
from sets import write_beir

DOCUMENTS = ["list files", "make a folder", "copy a file"]
QUERIES = ["How do I list files?", "how do I make one?", "how do I copy?"]


def train_on(folder: Path, rows: list[tuple[str, str]]) -> list[Source]:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"query": query, "positives": [text]}) + "\n" for query, text in rows))
    return [Source(load_records(path, progress=False))]


def test_queries_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    dev = write_beir(tmp_path / "shell", DOCUMENTS, QUERIES, {f"q{i}": {f"d{i}": 1} for i in range(3)})
    rows = [(" how do i list files? ", "list files"), ("how do I make one?", "an answer of its own"), ("new", "text")]
    assert leak_note(dev, train_on(tmp_path, rows)) == (
        "shell/test: 2 of 3 queries are training queries too, 1 of them with a relevant document as a positive, such "
        "as 'How do I list files?'. Figures of this set, which choose the checkpoint, are too good by that; "
        "scripts/check_data.py --data TRAIN --eval shell --output CLEANED takes such rows out"
    )
    assert leak_note(dev, train_on(tmp_path, [("new", "list files")])) is None, "documents may be those of training"


def test_the_recipe_says_so_when_it_reads_a_dev_set(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    write_beir(tmp_path / "shell", DOCUMENTS, QUERIES, {"q0": {"d0": 1}})
    sources = train_on(tmp_path, [("How do I list files?", "list files")])
    load_dev_set(DevData(str(tmp_path / "shell"), split="test"), sources, show=True)
    assert "  warning: shell/test: 1 of 1 queries are training queries too" in capsys.readouterr().out
