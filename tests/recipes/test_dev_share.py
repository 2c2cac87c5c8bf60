"""A dev set held out of training data, in a run that is killed and resumed, and measured later on what it keeps."""

import json
from pathlib import Path

import pytest
from ranks import run_recipe

from nestling.run_files import evaluation_at
from recipes.runs import arguments, kill_after_step, losses


@pytest.mark.slow
def test_a_run_killed_and_resumed_keeps_what_it_held_out(bert: Path, data: Path, tmp_path: Path) -> None:
    settings = {"dev_share": 0.25, "eval_steps": 4, "max_steps": 12, "save_steps": 2, "early_stopping_patience": 9}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_recipe(*arguments(bert, data, whole, **settings))
    command = arguments(bert, data, killed, **settings)
    kill_after_step(command, killed, 5, 1)
    run_recipe(*command, "--resume=true")
    assert losses(killed) == losses(whole)
    assert (whole / "held_out" / "first" / "corpus.jsonl").read_bytes() == (
        killed / "held_out" / "first" / "corpus.jsonl"
    ).read_bytes()
    after = evaluation_at(killed / "metrics.jsonl", 12)
    assert set(after) == {"first/dev", "second/dev"}
    output = tmp_path / "later.json"
    run_recipe("scripts/export.py", f"--checkpoint={killed}/checkpoints/step-12", f"--output={tmp_path}/last")
    run_recipe(
        *("scripts/evaluate.py", f"--model={tmp_path}/last", f"--data={killed}/held_out/first", "--split=dev"),
        *("--dims=32", f"--output={output}"),
    )
    (row,) = json.loads(output.read_text())["results"]
    assert row["metrics"] == pytest.approx(after["first/dev"][32], abs=1e-9)
