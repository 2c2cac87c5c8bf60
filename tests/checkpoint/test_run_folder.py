"""Run folders: started, resumed, refused, locked."""

import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from nestling.checkpoint import check_run_folder, open_run_folder, run_folder

CONFIG = {"learning_rate": 1e-4, "dims": [64, 32], "lora": {"r": 8}, "train": [{"path": "a.jsonl"}], "wandb": None}
fork = multiprocessing.get_context("fork")
# Python 3.12 and later warn of forks beside threads; the children here only touch files.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def start(path: Path, **changes: object) -> None:
    with open_run_folder(path, {**CONFIG, **changes}, resume=False) as run:
        assert not run.resumed


def test_a_new_run_folder_holds_config_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    start(path, model=Path("models/數據"), dims=(64, 32))
    text = (path / "config.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 0.0001" in text
    assert "model: models/數據" in text
    (launch,) = json.loads((path / "run.json").read_text())["launches"]
    assert launch["world_size"] == 1
    assert launch["versions"]["torch"] == torch.__version__
    assert {"nestling", "python", "transformers", "peft", "accelerate"} < launch["versions"].keys()
    assert set(launch) == {"started", "command", "world_size", "versions", "platform", "git"}


def test_an_existing_run_is_resumed_or_refused(tmp_path: Path) -> None:
    start(tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(FileExistsError, match=r"is not empty; continue the run in it with --resume true, or choose"):
        start(tmp_path)
    with open_run_folder(tmp_path, {**CONFIG, "wandb": "project"}, resume=True, may_differ=["wandb"]) as run:
        assert run.resumed
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert len(json.loads((tmp_path / "run.json").read_text())["launches"]) == 2


def test_a_path_that_cannot_hold_a_run_is_refused_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file, so that .*file/runs/first cannot be a folder"):
        check_run_folder(tmp_path / "file" / "runs" / "first", CONFIG, resume=False)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"cannot be written, so that .*/runs/first cannot hold a run"):
        check_run_folder(tmp_path / "runs" / "first", CONFIG, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resume_names_each_setting_that_differs(tmp_path: Path) -> None:
    start(tmp_path)
    changed = {**CONFIG, "learning_rate": 2e-5, "dims": [64], "lora": {"r": 8, "alpha": 16}, "train": [{"path": "b"}]}
    with (
        pytest.raises(ValueError, match="was started with other settings") as caught,
        open_run_folder(tmp_path, changed, resume=True, may_differ=["train"]),
    ):
        pass
    assert str(caught.value).splitlines()[1:-1] == [
        "  learning_rate: 0.0001 then, 2e-05 now",
        "  dims.1: 32 then, (absent) now",
        "  lora.alpha: (absent) then, 16 now",
    ]
    assert len(json.loads((tmp_path / "run.json").read_text())["launches"]) == 1


def test_resume_of_a_run_that_never_started_starts_it(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.partial").write_text("learning_ra")
    with open_run_folder(tmp_path, CONFIG, resume=True) as run:
        assert not run.resumed
    assert (tmp_path / "config.yaml").exists()


def test_a_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for resume, message in ((False, "no run to resume in it"), (True, "no run to resume in it")):
        with pytest.raises(FileExistsError, match=message), open_run_folder(tmp_path, CONFIG, resume=resume):
            pass
    with pytest.raises(FileExistsError, match="is a file"):
        start(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path: Path) -> None:
    """The process is killed while one of its data workers lives on, which must not keep the lock."""
    reader, sender = fork.Pipe(duplex=False)

    def use_folder() -> None:
        with open_run_folder(tmp_path, CONFIG, resume=False):
            worker = fork.Process(target=time.sleep, args=(30,))
            worker.start()
            sender.send(worker.pid)
            time.sleep(30)

    process = fork.Process(target=use_folder)
    process.start()
    worker = reader.recv()
    try:
        with (
            pytest.raises(ValueError, match=f"is in use by process {process.pid} on "),
            open_run_folder(tmp_path, CONFIG, resume=True),
        ):
            pass
        process.kill()
        process.join()
        with open_run_folder(tmp_path, CONFIG, resume=True) as run:
            assert run.resumed
        os.kill(worker, 0)
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_new_versions_are_reported_at_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    monkeypatch.setattr(run_folder, "versions", lambda: {"torch": "9.9"})
    with open_run_folder(tmp_path, CONFIG, resume=True):
        pass
    assert "versions changed since the last launch" in caplog.text


def test_git_state_is_of_this_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "nestling"
    (package / "checkpoint").mkdir(parents=True)
    (package / "checkpoint" / "run_folder.py").write_text("first")
    monkeypatch.setattr(run_folder, "__file__", str(package / "checkpoint" / "run_folder.py"))
    assert run_folder.git_state() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = run_folder.git_state()
    assert clean is not None
    assert clean["dirty"] is False
    assert len(str(clean["commit"])) == 40
    (package / "checkpoint" / "run_folder.py").write_text("second")
    assert run_folder.git_state() == {"commit": clean["commit"], "dirty": True}
    installed = tmp_path / ".venv" / "nestling" / "checkpoint"
    installed.mkdir(parents=True)
    monkeypatch.setattr(run_folder, "__file__", str(installed / "run_folder.py"))
    assert run_folder.git_state() is None
