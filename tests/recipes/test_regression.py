"""train/embed.py with a teacher whose embeddings are learnt through a projection."""

import json
from pathlib import Path

import pytest
from ranks import run_recipe
from safetensors.torch import load_file

from recipes.runs import arguments, assert_said, assert_same_weights, kill_after_step, launched, losses, run_and_record

TEACHER = {"loss.regression_weight": 0.5}


def test_a_resumed_run_learns_the_same_embeddings_bit_for_bit(
    qwen3: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    """The projection is fitted to the model before training, also where a run goes on from a checkpoint."""
    more = {**TEACHER, "loss.teacher": bert, "max_steps": 6, "save_steps": 2, "tuning": "full", "precision": "fp32"}
    whole, killed, plain = (tmp_path / name for name in ("whole", "killed", "plain"))
    run_and_record(arguments(qwen3, data, whole, **more), whole)
    assert_said(whole, "the teacher's projection is fitted to ")
    kill_after_step(arguments(qwen3, data, killed, **more), killed, 3, 1)
    run_recipe(*arguments(qwen3, data, killed, **more), "--resume=true")
    assert losses(killed) == losses(whole)
    assert_same_weights(*(load_file(run / "final" / "model.safetensors") for run in (killed, whole)))
    run_recipe(*arguments(qwen3, data, plain, **{**more, "loss.regression_weight": 0, "loss.teacher": "null"}))
    term = losses(whole)[1][0] - losses(plain)[1][0]
    assert 0.01 < term < 0.5 * 2 * 3 * 2, (
        "weight times 2 - 2 cos, less than 2, of queries and documents in 3 dimensions"
    )


def test_graded_pairs_train_beside_it_and_alone_are_refused(
    qwen3: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    graded = tmp_path / "graded.jsonl"
    rows = [{"sentence1": f"text {i}", "sentence2": f"other {i % 5}", "score": i % 3 / 2} for i in range(40)]
    graded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {**TEACHER, "loss.teacher": bert, "max_steps": 4, "dev_share": 0}
    done = run_recipe(*arguments(qwen3, data, tmp_path / "alone", **{**more, "train": graded}), check=False)
    assert done.returncode != 0
    assert "loss.regression_weight: all datasets are graded pairs, which learn their scores alone" in done.stderr
    both = {**more, "train": f"{data}/first.jsonl,{graded}", "loss.distillation_weight": 0.5}
    run_recipe(*arguments(qwen3, data, tmp_path / "both", **both, **{"loss.teacher_temperature": 0.1}))
    assert all(0 < loss < 100 for loss, *_ in losses(tmp_path / "both").values())


@pytest.mark.slow
@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2"])
def test_two_processes_learn_as_one(name: str, qwen3: Path, bert: Path, data: Path, tmp_path: Path) -> None:
    """With a share of the change in final/, too, which each backend takes of its own kind of weights."""
    if name != "ddp":
        pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    more = {**TEACHER, "loss.teacher": bert, "max_steps": 4, "lora.dropout": 0.0, "dev_share": 0, "interpolate": 0.6}
    one, two = (arguments(qwen3, data, tmp_path / each, **more) for each in ("1", "2"))
    run_recipe(*one)
    run_recipe(*two, ranks=2) if name == "ddp" else run_recipe(*launched(name, two))
    for step, expected in losses(tmp_path / "1").items():
        assert losses(tmp_path / "2")[step] == pytest.approx(expected, rel=2e-4), step
    alone, together, base = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "1" / "final", tmp_path / "2" / "final", qwen3)
    )
    moved = [name for name in alone if (alone[name] - base[name]).norm() > 1e-3]
    assert len(moved) > 10
    for each in moved:
        change = alone[each] - base[each]
        assert (together[each] - alone[each]).norm() < 0.02 * change.norm(), each
    for run in ("1", "2"):
        assert json.loads((tmp_path / run / "interpolation.json").read_text())["share"] == 0.6
