"""Commands that write one output at once: one wins, the other is told, and the output is whole at all times."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import ROOT, environment, python, run_recipe
from transformers import AutoModelForSequenceClassification

import warm
from mining.small import random_rows, write_rows
from recipes.runs import arguments

pytestmark = pytest.mark.usefixtures("workplace")

# How often each is tried: a few times by default, and many times.
TIMES = [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def both(*command: str | Path, output: Path, whole: Callable[[Path], None]) -> None:
    """Start a command twice. `whole` fails for an output that is not complete; it is called while they run, too."""
    words = python(*map(str, command), "--output", str(output))
    processes = [
        warm.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    while any(each.poll() is None for each in processes):
        if output.exists():
            whole(output)
    said = [each.communicate()[1] for each in processes]
    assert sorted(each.returncode for each in processes) == [0, 2], said
    winner, loser = sorted(range(2), key=lambda i: processes[i].returncode)
    by = f"error: --output {output} exists; choose another name or remove it\n"
    writing = f"error: {output} is being written by process {processes[winner].pid} on "
    assert said[loser] == by or said[loser].startswith(writing)
    whole(output)
    assert not [path.name for path in output.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("times", TIMES)
def test_two_mines(times: int, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", random_rows(40))
    flags = ["--retrievers", "bm25", "--max_score_ratio", "null", "--num_negatives", "2"]

    def whole(path: Path) -> None:
        assert len([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]) == 40

    for i in range(times):
        both("scripts/mine.py", "--data", rows, *flags, output=tmp_path / f"mined-{i}.jsonl", whole=whole)


@pytest.mark.parametrize("times", TIMES)
def test_two_exports(times: int, qwen3_reranker: Path, tmp_path: Path) -> None:
    def whole(path: Path) -> None:
        assert {"config.json", "model.safetensors", "README.md"} <= {each.name for each in path.iterdir()}

    for i in range(times):
        output = tmp_path / f"classifier-{i}"
        both("scripts/export.py", "--model", qwen3_reranker, "--shape", "classifier", output=output, whole=whole)
        assert AutoModelForSequenceClassification.from_pretrained(output).config.num_labels == 1


@pytest.mark.parametrize("times", TIMES)
def test_two_evaluations_with_details(times: int, data: Path, tmp_path: Path) -> None:
    flags = ["--first_stage", "bm25", "--data", data / "dev", "--split", "dev", "--details", "true"]

    def whole(path: Path) -> None:
        assert json.loads(path.read_text())["results"]
        assert len(path.with_suffix(".details.jsonl").read_text().splitlines()) == 8

    for i in range(times):
        both("scripts/evaluate.py", *flags, output=tmp_path / f"results-{i}.json", whole=whole)


@pytest.mark.parametrize("times", TIMES)
def test_two_trainings(times: int, qwen3: Path, data: Path, tmp_path: Path) -> None:
    """One run is in the folder; the other is told so before it has trained."""
    alone = tmp_path / "alone"
    run_recipe(*arguments(qwen3, data, alone, max_steps=3))
    for i in range(times):
        output = tmp_path / f"run-{i}"
        words = python(*arguments(qwen3, data, output, max_steps=3))
        processes = [
            warm.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [each.communicate()[1] for each in processes]
        assert sorted(each.returncode for each in processes) == [0, 2], said
        refused = next(text for text, each in zip(said, processes, strict=True) if each.returncode == 2)
        assert (
            f"error: {output} is in use by process" in refused or f"error: {output} exists and is not empty" in refused
        )
        assert (output / "final" / "model.safetensors").read_bytes() == (
            alone / "final" / "model.safetensors"
        ).read_bytes()
