"""Disks that are full, files that may not grow and folders that cannot be written, under the real commands.

The kernel sets the limits: on the size of a file (RLIMIT_FSIZE), which is like a quota, or by a small file system.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest
from ranks import ROOT, python, run_recipe

import scripts.check_data
import scripts.evaluate
import scripts.export
import scripts.merge
import scripts.mine
import scripts.report
from nestling.synthesis.journal import open_journal
from nestling.training.tracking import open_tracker
from recipes.runs import arguments, metrics, run_main, stop_after_step
from sets import random_set
from tiny import tiny_qwen3

TOO_LARGE = "File too large; raise the limit on the size of files (ulimit -f), or choose a place on another disk"
# A command under the limit that is its first argument.
LIMITED = (
    "import resource, runpy, sys; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), hard)); del sys.argv[:2]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)

Script = Callable[[], None]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes."""
    soft, hard = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one error that a command ended with."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert len(errors) == 1, done.stderr
    return errors[0].removeprefix("error: ")


def everything(folder: Path) -> set[Path]:
    """All that is in a folder, hidden files too, but for the lock of a run."""
    return {path for path in folder.rglob("*") if path.name != ".lock"}


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beir") / "some"
    random_set(folder, documents=30, queries=8)
    return folder


@pytest.fixture
def result(beir: Path, tmp_path: Path) -> Path:
    """A result of evaluation, measured before any limit."""
    path = tmp_path / "result.json"
    evaluated = run_main(scripts.evaluate.main, "--first_stage", "bm25", "--data", beir, "--output", path)
    assert evaluated.returncode == 0, evaluated.stderr
    return path


@pytest.fixture
def commands(beir: Path, data: Path, result: Path, qwen3: Path, tmp_path: Path) -> dict[str, tuple[Script, list[str]]]:
    """The scripts by what they write, to which the name of an output is added."""
    pairs = str(data / "first.jsonl")
    other, reranker = (
        tiny_qwen3(tmp_path / "other", seed=5),
        tiny_qwen3(tmp_path / "base", sentence_transformers=False),
    )
    return {
        "result.json": (scripts.evaluate.main, ["--first_stage", "bm25", "--data", str(beir), "--output"]),
        "mined.jsonl": (scripts.mine.main, ["--retrievers", "bm25", "--data", pairs, "--output"]),
        "copy.jsonl": (scripts.check_data.main, ["--data", pairs, "--sample", "10", "--output"]),
        "data.html": (scripts.check_data.main, ["--data", pairs, "--sample", "10", "--report"]),
        "report.html": (scripts.report.main, ["--results", str(result), "--output"]),
        "exported": (scripts.export.main, ["--model", str(reranker), "--shape", "causal", "--output"]),
        "merged": (scripts.merge.main, ["--models", f"{qwen3},{other}", "--method", "linear", "--output"]),
    }


OUTPUTS = ["result.json", "mined.jsonl", "copy.jsonl", "data.html", "report.html", "exported", "merged"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OUTPUTS)
def test_files_that_may_not_grow(
    name: str, commands: dict[str, tuple[Script, list[str]]], tmp_path: Path, beir: Path, data: Path
) -> None:
    main, flags = commands[name]
    output = tmp_path / "out" / name
    output.parent.mkdir()
    with largest_file(200):
        message = error_of(run_main(main, *flags, output))
    if "cache folder" in message:  # which is filled first
        assert run_main(main, *flags, output.with_name(f"first-{name}")).returncode == 0
        for path in output.parent.iterdir():
            path.rename(tmp_path / path.name)
        with largest_file(200):
            message = error_of(run_main(main, *flags, output))
    assert message == f"cannot write {output}: {TOO_LARGE}"
    assert everything(output.parent) == set()


@pytest.mark.parametrize("name", ["result.json", "mined.jsonl", "copy.jsonl", "report.html", "exported", "merged"])
def test_a_folder_that_cannot_be_written(
    name: str, commands: dict[str, tuple[Script, list[str]]], small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    main, flags = commands[name]
    output = small_disk / name
    message = error_of(run_main(main, *flags, output))
    assert message == f"cannot write {output}: Read-only file system; choose a folder that can be written"


def limited(size: int, command: list[str]) -> list[str]:
    return ["-c", LIMITED, str(size), *command]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(qwen3: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = arguments(qwen3, data, run, max_steps=12, save_steps=2, save_total_limit=1, logging_steps=1)
    stop_after_step(command, run, 3, signal.SIGTERM)
    (before,) = (run / "checkpoints").iterdir()
    content = {path: path.read_bytes() for path in before.iterdir()}
    largest = max(map(len, content.values()))

    message = error_of(run_recipe(*limited(largest - 1, [*command, "--resume=true"]), check=False))
    assert message.startswith(f"cannot write the checkpoint {run}/checkpoints/step-")
    assert "File too large; the " in message
    assert message.endswith(
        f"earlier checkpoints are intact: {TOO_LARGE.partition('; ')[2]}, and resume the run (--resume true)"
    )
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == content

    run_recipe(*command, "--resume=true")
    assert (run / "final" / "model.safetensors").is_file()
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))


def test_a_model_that_cannot_be_exported_is_exported_later(qwen3: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = arguments(qwen3, data, run, max_steps=2)
    message = error_of(run_recipe(*limited(100_000, command), check=False))
    assert message == f"cannot write {run}/final: {TOO_LARGE}; checkpoints are intact: --resume true writes it later"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert not [path for path in run.iterdir() if "final" in path.name]
    run_recipe(*command, "--resume=true")
    assert (run / "final" / "model.safetensors").is_file()


def test_a_run_on_a_full_disk_says_so(qwen3: Path, data: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(2 * 2**20 - 8192))
    message = error_of(run_recipe(*arguments(qwen3, data, small_disk / "run", max_steps=2), check=False))
    assert message.startswith(f"cannot write {small_disk}/run")
    assert "No space left on device" in message


def test_output_to_a_full_device(result: Path, full_device: Path) -> None:
    command = python("scripts/compare.py", "--results", str(result))
    with full_device.open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, env=dict(os.environ)
        )
    assert error_of(done).startswith("cannot write the output: No space left on device; free space there")


def test_metrics_that_may_not_grow(tmp_path: Path) -> None:
    def log() -> None:
        with open_tracker(tmp_path, main_rank=True) as tracker:
            for step in range(100):
                tracker.log(step, {"loss": 0.5})

    expected = rf"^cannot write {tmp_path}/metrics.jsonl: File too large"
    with largest_file(100), pytest.raises(OSError, match=expected):
        log()
    with open_tracker(tmp_path, main_rank=True, resumed_step=2) as tracker:
        tracker.log(3, {"loss": 0.25})
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1, 2, 3], "the incomplete line is gone"


def test_a_journal_that_may_not_grow(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with (
        largest_file(20),
        pytest.raises(OSError, match=rf"^cannot write {journal}: File too large"),
        open_journal(journal, {"model": "a name that is long enough"}),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl"]
