"""Tracking: JSON lines that survive kills and resumes, wandb and TensorBoard, progress and tables."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nestling.console import Progress, summary, table
from nestling.run_files import evaluation_at
from nestling.training.tracking import JsonLines, Meter, Tracker, flat_numbers, open_tracker


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def log_steps(folder: Path, steps: range, resumed_step: int | None = None) -> None:
    with open_tracker(folder, main_rank=True, resumed_step=resumed_step) as tracker:
        for step in steps:
            tracker.log(step, {"loss": step / 2})


def test_values_become_plain_finite_json(tmp_path: Path) -> None:
    values = {
        "loss": math.nan,
        "norm": np.float32(math.inf),
        "rate": np.float32(0.5),
        "tokens": np.int64(7),
        "on": True,
    }
    with open_tracker(tmp_path, main_rank=True) as tracker:
        tracker.log(3, values)
        tracker.log_evaluation(3, {"nl2bash": {384: {"nDCG@10": 0.25, "MRR@10": math.nan}}, "數據": None})
    assert lines(tmp_path) == [
        {"step": 3, "loss": None, "norm": None, "rate": 0.5, "tokens": 7, "on": True},
        {"step": 3, "eval": {"nl2bash": {"384": {"nDCG@10": 0.25, "MRR@10": None}}, "數據": None}},
    ]


def test_a_line_is_in_the_file_before_the_tracker_closes(tmp_path: Path) -> None:
    with open_tracker(tmp_path, main_rank=True) as tracker:
        tracker.log(1, {"loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_resume_cuts_later_steps_so_that_each_is_there_once(tmp_path: Path) -> None:
    log_steps(tmp_path, range(1, 8))
    log_steps(tmp_path, range(5, 11), resumed_step=4)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))


def test_a_start_from_the_beginning_keeps_no_line(tmp_path: Path) -> None:
    log_steps(tmp_path, range(0, 4))
    log_steps(tmp_path, range(0, 2))
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}', '{"step": "2"}\n', "\udcff\x00\n"])
def test_a_torn_line_is_removed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: str) -> None:
    log_steps(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(torn)
    log_steps(tmp_path, range(3, 4), resumed_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert "metrics.jsonl:3" in caplog.text


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, full_device: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", None)
    with full_device.open("w") as full:
        os.dup2(full.fileno(), sink.file.fileno())
    for fails in (lambda: sink.write(4, {"loss": 1.0}), sink.close):
        with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
            fails()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with open_tracker(tmp_path, main_rank=False, report_to=["wandb", "tensorboard"]) as tracker:
        tracker.log(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_flat_numbers_leave_out_what_is_no_number() -> None:
    values = {"loss": 1.0, "norm": None, "eval": {"nl2bash": {"384": {"nDCG@10": 0.5}}}}
    assert list(flat_numbers(values)) == [("loss", 1.0), ("eval/nl2bash/384/nDCG@10", 0.5)]


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_step, steps in ((None, range(1, 6)), (3, range(4, 7))):
        with open_tracker(tmp_path, main_rank=True, resumed_step=resumed_step, report_to=["tensorboard"]) as tracker:
            for step in steps:
                tracker.log(step, {"loss": step / 4, "norm": math.nan})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(n, n / 4) for n in range(1, 7)]


def test_wandb_offline_keeps_its_id_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for resumed_step in (None, 1):
        with open_tracker(
            tmp_path, main_rank=True, resumed_step=resumed_step, report_to=["wandb"], config={"dims": [8]}
        ) as tracker:
            tracker.log(1, {"loss": 0.5})
    run_id = (tmp_path / "wandb_id").read_text()
    assert len(run_id) == 8
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}*"))) == 2


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="report_to: wandb is not installed; pip install wandb"):
        open_tracker(tmp_path, main_rank=True, report_to=["wandb"])


def test_import_leaves_wandb_and_tensorboard_alone() -> None:
    names = ("wandb", "tensorboard", "torch")
    code = f"import sys, nestling.training.tracking; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_progress_without_a_terminal_prints_lines_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, done=4, seconds=0.0) as progress:
        progress.update(5, loss=1.23456, learning_rate=1e-4, tokens_per_second=12345.0)
        progress.say("evaluated")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 5/10 (50%), loss 1.2346, lr 1.00e-04, 12.3k tokens/s, 00:00 left"
    assert second == "evaluated"


def test_progress_lines_are_rare_but_the_last_step_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, seconds=60.0) as progress:
        for step in (1, 2, 3):
            progress.update(step, loss=0.0, learning_rate=0.0, tokens_per_second=1.0)
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["step 3/3 (100%)"]


def test_progress_on_a_terminal_is_a_bar_that_starts_where_the_run_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, done=4) as progress:
        progress.update(9, loss=0.5, learning_rate=1e-4, tokens_per_second=500.0)
        progress.bar.refresh()
    assert "4/10" in terminal.getvalue()
    assert "9/10" in terminal.getvalue()
    assert "loss 0.5000, lr 1.00e-04, 500 tokens/s" in terminal.getvalue()


def test_progress_of_other_ranks_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, shown=False) as progress:
        progress.update(1, loss=0.0, learning_rate=0.0, tokens_per_second=1.0)
        progress.say("evaluated")
    assert capsys.readouterr().err == ""


def test_a_tracker_without_sinks_takes_lines() -> None:
    with Tracker([]) as tracker:
        tracker.log(1, {"loss": 0.5})


def test_an_evaluation_is_read_back_by_its_step(tmp_path: Path) -> None:
    with open_tracker(tmp_path, main_rank=True) as tracker:
        for step in (0, 5):
            tracker.log(step, {"loss": 0.5})
            tracker.log_evaluation(step, {"nl2bash": {384: {"nDCG@10": step / 10}}})
    assert evaluation_at(tmp_path / "metrics.jsonl", 5) == {"nl2bash": {384: {"nDCG@10": 0.5}}}
    assert evaluation_at(tmp_path / "metrics.jsonl", 6) == {}


def test_meter_takes_means_since_the_last_reading() -> None:
    meter = Meter(tokens=100)
    meter.add(1.0, 2.0, seconds=0.5)
    meter.add(3.0, 4.0, seconds=1.5)
    assert meter.read(tokens=300) == {"loss": 2.0, "grad_norm": 3.0, "seconds": 2.0, "tokens_per_second": 100.0}
    meter.add(5.0, 6.0, seconds=0.5)
    assert meter.read(tokens=310) == {"loss": 5.0, "grad_norm": 6.0, "seconds": 0.5, "tokens_per_second": 20.0}


def test_table_aligns_numbers_and_shows_what_is_missing() -> None:
    rows = [["before", 384, 0.5], ["after", 32, None]]
    assert table(["model", "dim", "nDCG@10"], rows) == (
        "model      dim    nDCG@10\n"
        "-------  -----  ---------\n"
        "before     384      0.500\n"
        "after       32      -"
    )  # fmt: skip
    assert table(["dim", "nDCG@10"], [[32, 0.25]], digits=2, markdown=True).splitlines()[-1].split() == [
        "|",
        "32",
        "|",
        "0.25",
        "|",
    ]


def test_summary_aligns_names_and_groups_thousands() -> None:
    assert (
        summary("Run", {"steps": 12000, "learning rate": "1e-4"})
        == "Run\n  steps          12,000\n  learning rate  1e-4"
    )
