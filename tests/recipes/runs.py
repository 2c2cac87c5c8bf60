"""What tests of train/embed.py share: small data, a command, and what a run leaves behind."""

import json
import random
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from ranks import ROOT, environment, python
from safetensors.torch import load_file

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
        "dims": "32,16",
        "batch_size": 8,
        "negatives": 2,
        "learning_rate": 1e-2,
        "chunk_tokens": 64,
        "cpu": "true",
        **more,
    }
    return ["train/embed.py", *(f"--{name}={value}" for name, value in settings.items())]


def metrics(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    lines = [line for line in metrics(run) if "loss" in line]
    return {int(str(line["step"])): (float(str(line["loss"])), float(str(line["grad_norm"]))) for line in lines}


def weights(run: Path, step: int) -> Mapping[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def kill_after_step(command: list[str], run: Path, step: int, ranks: int) -> None:
    """Start a run and kill it, launcher, ranks and workers, once `step` is in its metrics."""
    process = subprocess.Popen(
        python(*command, ranks=ranks),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    # torchrun gives its ranks sessions of their own, so killing the group would leave them running.
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def assert_same_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
