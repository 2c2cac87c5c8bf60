"""What tests of recipes and scripts share: small data, a command, and what a run leaves behind."""

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import psutil
import pytest
import torch
from ranks import ROOT, environment, python, run_recipe
from safetensors.torch import load_file

import warm
from nestling import config

SUBJECTS = ["files", "folders", "users", "lines", "words", "ports", "jobs", "disks"]
ACTIONS = ["list", "count", "sort", "remove", "find", "print"]


def write_pairs(file: Path, count: int, salt: str) -> Path:
    generator = random.Random(salt)
    rows = []
    for i in range(count):
        action, subject = generator.choice(ACTIONS), generator.choice(SUBJECTS)
        rows.append(
            {
                "query": f"{action} {subject} {salt} {i}",
                "positives": [f"how to {action} the {subject} number {i} " * (1 + i % 3)],
                "negatives": [f"{other} {subject} {i}" for other in ACTIONS if other != action],
            }
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_dev(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for i, subject in enumerate(SUBJECTS):
            corpus.write(json.dumps({"_id": f"d{i}", "title": "", "text": f"how to list the {subject}"}) + "\n")
            queries.write(json.dumps({"_id": f"q{i}", "text": f"list {subject}"}) + "\n")
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(len(SUBJECTS)))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def write_data(folder: Path) -> Path:
    """Two training sets, and a dev set on the same subjects."""
    write_pairs(folder / "first.jsonl", 48, "first")
    write_pairs(folder / "second.jsonl", 40, "second")
    write_dev(folder / "dev")
    return folder


def arguments(model: Path, data: Path, output: Path, /, **more: object) -> list[str]:
    settings: dict[str, object] = {
        "model": model,
        "output_dir": output,
        "train": f"{data}/first.jsonl,{data}/second.jsonl",
        "query_max_length": 96,
        "document_max_length": 24,
        "lora.r": 4,
        "lora.dropout": 0.2,
        "precision": "fp32",
        "matryoshka_dims": "32,16",
        "batch_size": 8,
        "num_negatives": 2,
        "learning_rate": 1e-2,
        "chunk_tokens": 64,
        "use_cpu": "true",
        **more,
    }
    if settings.get("tuning") == "full":
        del settings["lora.r"], settings["lora.dropout"]
    return ["train/embed.py", *(f"--{name}={value}" for name, value in settings.items())]


def run_main(main: Callable[[], None], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script's `main` in this process, where torch is loaded already, as its command would."""
    command, output, errors, status = ["script", *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", command)
        try:
            config.run(main)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())


def unloadable(model: Path, folder: Path) -> Path:
    """A copy of a model that can be asked for its settings, and whose weights fail to load in a way of their own."""
    shutil.copytree(model, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def refusal(main: Callable[[], None], *arguments: str, folder: Path) -> str:
    """What `main` refuses with, without the `folder` in it, where nothing is left but sources that were sound."""
    before = set(folder.rglob("*"))
    done = run_main(main, *arguments)
    assert done.returncode == 2
    new = [path for path in sorted(folder.rglob("*")) if path not in before]
    kept = [path for path in new if path.suffix != ".arrow" and "independence" not in str(path)]  # trials of models
    assert kept == [], "only sources that were sound are in the cache"
    assert not [path for path in new if path.name.startswith(".")]
    lines = done.stderr.replace(f"{folder}/", "").splitlines()
    first, *more = [line for line in lines if line and not line.startswith("Loading weights")]  # transformers' bar
    assert first.startswith("error: ")
    assert all(line.startswith("  ") or "rows read" in line for line in more), "a summary may follow"
    return first.removeprefix("error: ")


def run_and_record(command: list[str], run: Path) -> Path:
    """Run a recipe to its end; what it printed is in stdout.txt of its folder, which is returned."""
    (run / "stdout.txt").write_text(run_recipe(*command).stdout)
    return run


def assert_said(run: Path, *parts: str) -> None:
    said = (run / "stdout.txt").read_text()
    for part in parts:
        assert part in said, part


def metrics(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    lines = [line for line in metrics(run) if "loss" in line]
    return {int(str(line["step"])): (float(str(line["loss"])), float(str(line["grad_norm"]))) for line in lines}


def weights(run: Path, step: int) -> Mapping[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Wait until the metrics of a run have `step` lines."""
    deadline, file = time.monotonic() + 200, run / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= step):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stop_after_step(command: list[str], run: Path, step: int, number: signal.Signals) -> str:
    """Send a signal to a run of one process once its metrics have `step` lines; what it said."""
    process = warm.Popen(
        python(*command), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run, step, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    return said


def kill_after_step(command: list[str], run: Path, step: int, ranks: int) -> None:
    """Start a run and kill it, launcher, ranks and workers, once its metrics have `step` lines."""
    process = warm.Popen(
        python(*command, ranks=ranks),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_step(run, step, process)
    # torchrun gives its ranks sessions of their own, so killing the group would leave them running.
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def assert_same_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_same_run(run: Path, expected: Path, *, loss: float, weight: float) -> None:
    """Losses and gradient norms differ by less than `loss` of themselves, weights of final/ by less than `weight`."""
    assert losses(run).keys() == losses(expected).keys()
    for step, wanted in losses(expected).items():
        assert losses(run)[step] == pytest.approx(wanted, rel=loss), step
    found, finals = (load_file(each / "final" / "model.safetensors") for each in (run, expected))
    assert found.keys() == finals.keys()
    for name, tensor in finals.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=weight, msg=name)


def launched(name: str, recipe: list[str], ranks: int = 2) -> list[str]:
    """Arguments of Python that launch a recipe by a file of configs/accelerate."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    return [*launcher, "--num_processes", str(ranks), *recipe]
