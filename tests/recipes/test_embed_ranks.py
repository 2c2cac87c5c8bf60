"""train/embed.py stopped on one number of processes and resumed on another: the same steps at one global batch."""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_recipe

from recipes.runs import arguments, kill_after_step, losses, metrics

STEPS = 10


def command(model: Path, data: Path, run: Path, **more: object) -> list[str]:
    """Without dropout, which differs between ranks."""
    return arguments(model, data, run, **{"max_steps": STEPS, "save_steps": 2, "lora.dropout": 0.0, **more})


@pytest.fixture(scope="module")
def whole(qwen3: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process that nobody interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe(*command(qwen3, data, run))
    return run


def examples(run: Path) -> dict[object, object]:
    """Rows trained on up to each step."""
    return {line["step"]: line["examples"] for line in metrics(run) if "loss" in line}


@pytest.mark.parametrize(("first", "then"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_resumed_on_another_number_of_processes(
    first: int, then: int, whole: Path, qwen3: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kill_after_step(command(qwen3, data, run), run, 5, first)
    assert 0 < len(list((run / "checkpoints").glob("step-*"))) <= 2
    assert not (run / "checkpoints" / f"step-{STEPS}").exists()
    resumed = run_recipe(*command(qwen3, data, run), "--resume=true", ranks=then)
    assert f"8 queries, {8 // then} on each process" in resumed.stdout
    assert [launch["world_size"] for launch in json.loads((run / "run.json").read_text())["launches"]] == [first, then]
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    for step, expected in losses(whole).items():
        assert losses(run)[step] == pytest.approx(expected, rel=2e-4), step
    assert examples(run) == examples(whole)
    assert (run / "final" / "model.safetensors").exists()


@pytest.mark.slow
def test_several_processes_find_the_same_documents_for_the_queries_of_a_dev_set(
    qwen3: Path, data: Path, tmp_path: Path
) -> None:
    def found(ranks: int) -> list[dict[str, Any]]:
        run = tmp_path / f"run-{ranks}"
        run_recipe(*command(qwen3, data, run, dev=data / "dev", max_steps=2), ranks=ranks)
        assert "before training" in (run / "report.html").read_text(encoding="utf-8")
        lines = (run / "dev" / "step-0.details.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    for one, two in zip(found(1), found(2), strict=True):
        assert one["metrics"] == two["metrics"]
        assert [each["id"] for each in one["first"]] == [each["id"] for each in two["first"]]


@pytest.mark.slow
def test_a_guide_a_teacher_spreading_out_and_retention_on_two_processes_and_resumed(
    whole: Path, qwen3: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    guided = {"loss.guide": bert, "loss.guide_margin": 0.01}
    guided |= {"loss.teacher": bert, "loss.distillation_weight": 0.5, "loss.teacher_temperature": 0.1}
    guided |= {"loss.spread_out_weight": 2.0, "loss.retention_weight": 3.0}
    one, two = tmp_path / "one", tmp_path / "two"
    run_recipe(*command(qwen3, data, one, **guided))
    assert losses(one)[1] != losses(whole)[1]
    kill_after_step(command(qwen3, data, two, **guided), two, 5, 2)
    run_recipe(*command(qwen3, data, two, **guided), "--resume=true", ranks=2)
    for step, expected in losses(one).items():
        assert losses(two)[step] == pytest.approx(expected, rel=2e-4), step


def test_processes_that_do_not_divide_the_batch_are_refused(qwen3: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe(*command(qwen3, data, run, batch_size=9), ranks=2, check=False)
    assert result.returncode != 0
    message = "error: batch_size 9 is for all 2 processes together and must divide by their number"
    assert result.stderr.splitlines().count(message) == 2, "every rank says it, none waits for another"
    assert not run.exists()
