"""A run around its steps: what is timed, how it ends, what it begins with when it is resumed."""

import json
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.checkpoint import RunFolder
from nestling.config import EmbedConfig, TrainData
from nestling.models.embedder import Embedder
from nestling.records import load_records
from nestling.run_files import read_exported
from nestling.training.dev_details import DevEvaluation, evaluate_bm25
from nestling.training.interpolation import interpolate_run, trained_tensors
from nestling.training.run import Run, open_run
from sets import random_set

Opened = AbstractContextManager[Run]
TOTAL = 4


@pytest.fixture
def opened(bert: Path, tmp_path: Path) -> Callable[..., Opened]:
    """Opens a run of four steps that is evaluated after each second one."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"query": f"q {i}", "positives": [f"d {i}"]}) + "\n" for i in range(8)))
    sampler = BatchSampler([Source(load_records(data, progress=False))], 2, RowSampler(1, 0, seed=0), seed=0)
    embedder = Embedder.from_pretrained(bert)

    def open_in(folder: Path, measure: Callable[[], list[DevEvaluation]], *, resumed: bool = False) -> Opened:
        train = [TrainData(str(data))]
        return open_run(
            EmbedConfig(model=str(bert), output_dir=str(folder), train=train, eval_steps=2, save_steps=2),
            RunFolder(folder, resumed=resumed),
            sampler,
            Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0)),
            total=TOTAL,
            measure=measure,
            axis="dim",
            main_rank=True,
            describe=lambda done: f"{done} done",
        )

    return open_in


@pytest.fixture
def evaluation(tmp_path: Path) -> DevEvaluation:
    whole = evaluate_bm25(random_set(tmp_path / "set", 12, 5))
    return replace(whole, metrics={8: whole.metrics[0]})


def take_step(run: Run) -> bool:
    run.state.advance(2, tokens=10, truncated=0)
    return run.close_step(1e-3, 0.5, 1.0, stopping=run.told_to_stop)


def test_evaluations_are_no_part_of_a_steps_time(
    opened: Callable[..., Opened], evaluation: DevEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def measure() -> list[DevEvaluation]:
        clock[0] += 100
        return [evaluation]

    (tmp_path / "run").mkdir()
    with opened(tmp_path / "run", measure) as run:
        for _ in run.steps:
            clock[0] += 1
            take_step(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [0, 2, 4]
    assert [line["seconds"] for line in lines if "loss" in line] == [1.0] * TOTAL


def test_a_signal_in_the_evaluation_of_the_last_step_ends_the_run(
    opened: Callable[..., Opened],
    evaluation: DevEvaluation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()

    def measure() -> list[DevEvaluation]:
        if run.state.step == TOTAL:
            signal.raise_signal(signal.SIGTERM)
        return [evaluation]

    context = opened(tmp_path / "run", lambda: [evaluation])
    run = context.__enter__()
    run.measure = measure
    assert all(take_step(run) for _ in run.steps)
    with pytest.raises(SystemExit) as stopped:
        context.__exit__(None, None, None)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM; saved {run.checkpoints.path(TOTAL)}; continue" in capsys.readouterr().err
    with opened(tmp_path / "run", lambda: [evaluation], resumed=True) as again:
        assert (again.state.step, list(again.steps)) == (TOTAL, [])


def test_a_best_checkpoint_that_is_gone_is_forgotten_at_the_resumption(
    opened: Callable[..., Opened], evaluation: DevEvaluation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Later evaluations are no better than that of step 2, whose checkpoint would be exported."""
    (tmp_path / "run").mkdir()
    with opened(tmp_path / "run", lambda: [evaluation]) as run:
        assert all(take_step(run) for _ in run.steps)
    assert (run.state.best_step, run.checkpoints.steps()) == (2, [2, TOTAL])
    with opened(tmp_path / "run", lambda: [evaluation], resumed=True) as again:
        assert again.state.best_step == 2
    shutil.rmtree(run.checkpoints.path(2))
    with opened(tmp_path / "run", lambda: [evaluation], resumed=True) as again:
        assert again.state.best_step is None
        exported: list[int] = []
        again.export(exported.append, Path("scripts/export.py"))
    assert exported == [TOTAL]
    assert f"the best checkpoint so far, {run.checkpoints.path(2)}, is gone" in caplog.text


def interpolated(run: Run) -> None:
    """Every weight of the base is 0."""
    base = {name: torch.zeros_like(each) for name, each in trained_tensors(run.backend.model).items()}
    interpolate_run(run, lambda: base, None, TOTAL)


def test_a_run_that_has_lost_its_last_lines_of_metrics_keeps_the_trained_weights(
    opened: Callable[..., Opened], evaluation: DevEvaluation, tmp_path: Path
) -> None:
    """They are not forced onto the disk as checkpoints are."""
    (tmp_path / "run").mkdir()
    with opened(tmp_path / "run", lambda: [evaluation]) as run:
        assert all(take_step(run) for _ in run.steps)
    first, *_ = run.folder.metrics.read_text().splitlines(keepends=True)
    run.folder.metrics.write_text(first)
    trained = trained_tensors(run.backend.model)
    interpolated(run)
    for name, each in trained_tensors(run.backend.model).items():
        assert torch.equal(each, trained[name]), name
    assert read_exported(run.folder.path) is None


def test_of_the_shares_only_the_best_keeps_its_embeddings(
    opened: Callable[..., Opened], evaluation: DevEvaluation, tmp_path: Path
) -> None:
    made: list[weakref.ref[DevEvaluation]] = []
    alive: list[int] = []

    def measure() -> list[DevEvaluation]:
        """Each evaluation is better than the one before."""
        alive.append(sum(each() is not None for each in made))
        metrics = {8: {**evaluation.metrics[8], "nDCG@10": 0.1 * (1 + len(made))}}
        better = replace(evaluation, metrics=metrics)
        made.append(weakref.ref(better))
        return [better]

    (tmp_path / "run").mkdir()
    with opened(tmp_path / "run", measure) as run:
        assert all(take_step(run) for _ in run.steps)
    alive.clear()
    interpolated(run)
    assert alive == [0, 1, 1]
    exported = read_exported(run.folder.path)
    assert exported is not None and exported.share == 0.25
