"""Launchers and NCCL, with a single process: DDP and FSDP2, stopped and resumed."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu.commands import failure, wait_for_steps
from scripts.gpu.place import ROOT, Place
from scripts.gpu.recipes import LONG, require_whole_run, settings

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=1")
ACCELERATE = ("accelerate.commands.launch", "--config_file=configs/accelerate/fsdp2.yaml", "--num_processes=1")


def ddp(place: Place) -> None:
    launch(place, TORCHRUN, "DDP", tuning="lora")


def fsdp2(place: Place) -> None:
    launch(place, ACCELERATE, "FSDP2", tuning="full")


def launch(place: Place, launcher: Sequence[str], backend: str, **more: object) -> None:
    """Start a run, stop it after three steps, and resume it from the checkpoint."""
    output, log = place.work / f"launched-{backend}", place.log(f"launched-{backend}")
    steps = place.size(*LONG)
    recipe = ["train/embed.py", *settings(place, "embedder", output, max_steps=steps, matryoshka_dims="64,32", **more)]
    words = [sys.executable, "-m", *launcher, *recipe]
    process = start(words, log)
    try:
        wait_for_steps(output / "metrics.jsonl", 3, process.poll)
    except TimeoutError as error:
        raise failure(backend, process.poll(), log) from error
    process.send_signal(signal.SIGTERM)
    process.wait()
    if not [*(output / "checkpoints").glob("step-*")]:
        raise failure(backend, process.returncode, log)
    process = start([*words, "--resume=true"], log)
    if process.wait():
        raise failure(backend, process.returncode, log)
    require_whole_run(output, steps)
    if f"1 ({backend})" not in log.read_text(encoding="utf-8"):
        raise AssertionError(f"the run does not say that it is one process of {backend}")


def start(words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
