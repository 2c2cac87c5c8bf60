"""train/embed.py with a dev set: what is in final/ is never worse there than the base."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ranks import run_recipe
from safetensors.torch import load_file

from recipes.runs import arguments, assert_said, run_and_record, weights
from report.pages import ParsedPage


def interpolated(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "interpolation.json").read_text(encoding="utf-8"))
    return found


def test_a_run_that_makes_dev_worse_gives_the_base(bert: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"max_steps": 4, "tuning": "full", "learning_rate": 0.5, "max_grad_norm": 0, "precision": "fp32"}
    run_and_record(arguments(bert, data, run, dev=data / "dev", **more), run)
    found = interpolated(run)
    assert found["share"] == 0
    assert set(found["measured"]) == {"0", "0.25", "0.5", "0.75", "1"}  # type: ignore[call-overload]
    assert_said(run, "warning: training did not beat the base on dev: nDCG@10 at the full dimension")
    assert_said(run, f"{run / 'final'} holds the base's weights")
    final, base = load_file(run / "final" / "model.safetensors"), load_file(bert / "model.safetensors")
    assert all(torch.equal(final[name], base[name]) for name in final)
    page = ParsedPage((run / "report.html").read_text()).text
    assert "share of the trained weights in final/ 0" in page
    results = json.loads((run / "dev" / f"step-{found['step']}.json").read_text())["results"]
    before = json.loads((run / "dev" / "step-0.json").read_text())["results"]
    assert [row["metrics"] for row in results] == [row["metrics"] for row in before]


def test_a_given_share_is_that_of_the_result_without_a_dev_set(bert: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"max_steps": 3, "tuning": "full", "learning_rate": 3e-3, "precision": "fp32"}
    run_and_record(arguments(bert, data, run, dev_share=0, interpolate=0.7, **more), run)
    assert interpolated(run) == {"step": 3, "share": 0.7, "measured": {}, "results": {}}
    assert_said(run, "share of the trained weights in final/: 0.7, as set; dev has not measured the base")
    assert_said(run, f"{run / 'final'} holds 0.7 of what training changed up to step 3")
    final, base = load_file(run / "final" / "model.safetensors"), load_file(bert / "model.safetensors")
    moved = 0
    for name, tensor in weights(run, 3).items():
        if tensor.is_floating_point():
            own = name.removeprefix("backbone.")
            torch.testing.assert_close(final[own], torch.lerp(base[own], tensor, 0.7), rtol=0, atol=0)
            moved += not torch.equal(final[own], tensor)
    assert moved > 10
    assert "share of the trained weights in final/ 0.7" in ParsedPage((run / "report.html").read_text()).text
    other = arguments(bert, data, run, dev_share=0, interpolate="true", **more)
    said = run_recipe(*other, "--resume=true").stdout
    assert (
        "; interpolate True (0.7 in config.yaml) changes nothing in it: move it away, and this command writes" in said
    )
    assert (
        "changes nothing"
        not in run_recipe(*arguments(bert, data, run, dev_share=0, interpolate=0.7, **more), "--resume=true").stdout
    )
    shutil.rmtree(run / "final")  # as after a failed export, and resumed with another setting
    run_recipe(*other, "--resume=true")
    assert not (run / "interpolation.json").exists()
    trained = weights(run, 3)["backbone.embeddings.word_embeddings.weight"]
    assert torch.equal(load_file(run / "final" / "model.safetensors")["embeddings.word_embeddings.weight"], trained)


@pytest.mark.slow
def test_two_ranks_choose_as_one_and_false_exports_the_trained(bert: Path, data: Path, tmp_path: Path) -> None:
    more = {"max_steps": 6, "tuning": "full", "learning_rate": 3e-3, "precision": "fp32", "dev": data / "dev"}
    for ranks in (1, 2):
        run_recipe(*arguments(bert, data, tmp_path / f"{ranks}", **more), ranks=ranks)
    base = load_file(bert / "model.safetensors")
    for ranks in (1, 2):
        found = interpolated(tmp_path / f"{ranks}")
        trained = weights(tmp_path / f"{ranks}", int(str(found["step"])))
        final = load_file(tmp_path / f"{ranks}" / "final" / "model.safetensors")
        for name, tensor in trained.items():
            if tensor.is_floating_point():
                own = name.removeprefix("backbone.")
                between = torch.lerp(base[own], tensor, float(str(found["share"])))
                torch.testing.assert_close(final[own], between, rtol=0, atol=0)
    assert interpolated(tmp_path / "1")["share"] == interpolated(tmp_path / "2")["share"]
    run_recipe(*arguments(bert, data, tmp_path / "off", interpolate="false", **more))
    assert not (tmp_path / "off" / "interpolation.json").exists()
