"""The page "your own data": its commands run one after the other, on a small file and a tiny model."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT, Command, commands, in_markdown
from sets import WORDS

PAGE = "docs/your-own-data.md"
SNIPPETS = [each for each in in_markdown((ROOT / PAGE).read_text(encoding="utf-8"), PAGE) if each.kind == "bash"]
# What makes the commands of a real model and file quick on a tiny one.
SMALLER = {"--dims": "48,24", "--query_max_length": "24", "--document_max_length": "24", "--batch_size": "4"}


def write_table(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["task", "command"])
        rows.writerows([f"how to {WORDS[i % 12]} number {i}?", f"{WORDS[i % 12]} --{i}"] for i in range(80))


def words_of(command: Command, model: Path) -> list[str]:
    words = [str(model) if word == "MODEL" else word for word in command.words]
    return [SMALLER.get(flag, word) for flag, word in zip(["", *words], words, strict=False)]


@pytest.mark.slow
def test_its_commands_lead_to_the_page(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "commands.csv")
    for name in ("scripts", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = [each for snippet in SNIPPETS for each in commands(snippet) if each.words[0] in ("python", "mkdir")]
    for command in [each for each in run if "data/minilm.py" not in each.words]:
        words = words_of(command, bert)
        program = [sys.executable, *words[1:]] if words[0] == "python" else words
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr[-2000:])
    assert json.loads((tmp_path / "runs/mine/final/config.json").read_text())["hidden_size"] == 48
    assert "before" in (tmp_path / "runs/report.html").read_text(encoding="utf-8")
    assert [each.suffix for each in sorted((tmp_path / "my-set/qrels").iterdir())] == [".tsv", ".tsv"]
