"""Checkpoints of killed processes, damaged checkpoints, and full disks."""

import ctypes
import errno
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from nestling.checkpoint import Checkpoints, TrainingState, save_optimizer, write_training

fork = multiprocessing.get_context("fork")
# Python 3.12 and later warn of forks beside threads; the children here only touch files.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def writer(step: int, size: int = 8) -> Callable[[Path], None]:
    """Writes two files that must be of the same step."""

    def write(folder: Path) -> None:
        (folder / "model").write_bytes(bytes([step % 256]) * size)
        (folder / "sub").mkdir()
        (folder / "sub" / "state").write_text(str(step))

    return write


def content(folder: Path) -> int:
    """The step that a checkpoint of `writer` holds; asserts that all of it is of that step."""
    step = int((folder / "sub" / "state").read_text())
    assert set((folder / "model").read_bytes()) == {step % 256}
    assert folder.name == f"step-{step}"
    return step


def recovered(checkpoints: Checkpoints) -> int | None:
    path = checkpoints.recover()
    return None if path is None else content(path)


def test_save_rotates_and_keeps_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (5, 10, 15, 20, 100):
        assert content(checkpoints.save(step, writer(step), best_step=10 if step >= 10 else None)) == step
    assert checkpoints.steps() == [10, 20, 100]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-10", "step-100", "step-20"]
    assert content(checkpoints.verified(10)) == 10


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_no_checkpoint_recovers_to_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").recover() is None


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, lambda folder: (folder / "old").touch())
    checkpoints.save(3, writer(3))
    assert sorted(path.name for path in (tmp_path / "step-3").iterdir()) == ["manifest.json", "model", "sub"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def kill_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL this process just before the `call`-th operation on the disk that the atomic writes do."""
    counter = itertools.count()

    def deadly(operation: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            if next(counter) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return run

    for module, name in (
        (os, "replace"),
        (os, "fsync"),
        (os, "rmdir"),
        (os, "unlink"),
        (os, "mkdir"),
        (Path, "write_text"),
    ):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))


def save_steps(checkpoints: Checkpoints, steps: Iterable[int], done: ctypes.c_int, size: int = 8) -> None:
    for step in steps:
        checkpoints.save(step, writer(step, size), best_step=1)
        done.value = step


def test_a_kill_before_any_disk_operation_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    """Steps 1, 2, 2 again and 3, with the rotation, killed at every operation in turn."""

    def save_until_killed(call: int, checkpoints: Checkpoints, done: ctypes.c_int) -> None:
        kill_at(call, pytest.MonkeyPatch())
        save_steps(checkpoints, (1, 2, 2, 3), done)

    for call in itertools.count():
        checkpoints, done = Checkpoints(tmp_path / str(call), keep=1), fork.Value("i", 0, lock=False)
        process = fork.Process(target=save_until_killed, args=(call, checkpoints, done))
        process.start()
        process.join()
        latest = recovered(checkpoints) or 0
        assert latest in (done.value, done.value + 1)
        assert not done.value or content(checkpoints.verified(1)) == 1
        assert not list(checkpoints.folder.glob(".*"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert call > 40, "the operations were not seen"
    assert checkpoints.steps() == [1, 3]


def test_kills_at_random_moments_leave_the_last_complete_checkpoint(tmp_path: Path) -> None:
    checkpoints, latest = Checkpoints(tmp_path, keep=2), 0
    for delay in random.Random(0).choices([0.005, 0.01, 0.02, 0.03, 0.05, 0.08], k=15):
        done = fork.Value("i", latest, lock=False)  # the lock would stay with a process killed in it
        process = fork.Process(target=save_steps, args=(checkpoints, itertools.count(latest + 1), done, 1 << 20))
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        latest = recovered(checkpoints) or 0
        assert latest in (done.value, done.value + 1)
    checkpoints.save(latest + 1, writer(latest + 1), best_step=1)
    assert checkpoints.steps() == [1, latest, latest + 1]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "model").write_bytes(b"\x02" * 7 + b"\x03"), "content of model does not match"),
        (lambda folder: (folder / "model").write_bytes(b"\x02" * 7), "model has 7 bytes instead of 8"),
        (lambda folder: (folder / "sub" / "state").unlink(), "state is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"mo'), "manifest.json is not readable"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": ["model"]}'), "manifest.json is not readable"),
    ],
)
def test_damage_is_reported_and_an_older_checkpoint_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], reason: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, writer(step))
    spoil(tmp_path / "step-2")
    with pytest.raises(ValueError, match=f"step-2 cannot be loaded: .*{reason}"):
        checkpoints.verified(2)
    assert recovered(checkpoints) == 1
    assert "step-2 is damaged" in caplog.text
    assert reason in caplog.text
    checkpoints.save(2, writer(2))
    assert recovered(checkpoints) == 2
    assert (tmp_path / "step-2.damaged").is_dir()


def test_an_error_while_writing_leaves_no_files(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, writer(1))

    def fail(folder: Path) -> None:
        (folder / "model").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("full_file", ["model", "optimizer"])
def test_a_full_disk_is_reported_and_keeps_older_checkpoints(small_disk: Path, full_file: str) -> None:
    small, large = {"weight": torch.zeros(64_000)}, {"weight": torch.zeros(500_000)}
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=1)

    def write(folder: Path, step: int, tensors: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]) -> None:
        write_training(folder, tensors, TrainingState(step=step))
        save_optimizer(folder, dict(optimizer))

    checkpoints.save(1, lambda folder: write(folder, 1, small, small))
    tensors, optimizer = (large, small) if full_file == "model" else (small, large)
    with pytest.raises(
        OSError, match=r"cannot write the checkpoint .*step-2: No space left on device; .*resume the run"
    ) as caught:
        checkpoints.save(2, lambda folder: write(folder, 2, tensors, optimizer))
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-1"]
    assert checkpoints.recover() == checkpoints.path(1)


def test_a_disk_that_is_full_at_the_sync_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*step-1: Disk quota exceeded; .*raise the quota"):
        Checkpoints(tmp_path).save(1, writer(1))
    assert list(tmp_path.iterdir()) == []
