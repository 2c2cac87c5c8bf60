"""scripts/mine.py as it is run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nestling.records import load_records
from nestling.reranker import Reranker

SCRIPT = Path(__file__).parents[2] / "scripts" / "mine.py"
ROWS = [
    {"query": "how do I list files?", "positives": ["ls"], "negatives": ["rm -rf", "mkdir new"]},
    {"query": "show a manual", "positives": ["man ls", "info ls"], "instruction": "Find the command"},
    {"query": "only wrong ones", "positives": [], "negatives": ["cat"]},
]


def mine(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_scores_are_those_of_the_reranker(rows: Path, qwen3: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged.jsonl"
    done = mine("--judge", qwen3, "--data", rows, "--output", output, "--scores", "probability")
    assert done.returncode == 0, done.stderr
    assert "3 queries, 0 truncated; 6 documents, 0 truncated" in done.stdout
    judged = [json.loads(line) for line in output.read_text().splitlines()]
    reranker = Reranker.from_pretrained(qwen3)
    for row, given in zip(judged, ROWS, strict=True):
        assert {name: row[name] for name in given} == given
        documents = [*given["positives"], *given.get("negatives", [])]
        scores = reranker.score([(given["query"], each) for each in documents], instruction=given.get("instruction"))
        assert row["positive_scores"] + row["negative_scores"] == pytest.approx(scores.tolist(), abs=1e-6)
    assert load_records(output, allow_no_positives=True, progress=False).has_scores


def test_nothing_is_overwritten(rows: Path, tmp_path: Path) -> None:
    done = mine("--judge", "r", "--data", rows, "--output", rows)
    assert (done.returncode, done.stderr) == (2, f"error: --output {rows} exists; choose another name or remove it\n")
    done = mine("--judge", "r", "--data", rows, "--output", tmp_path / "none" / "judged.jsonl")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
