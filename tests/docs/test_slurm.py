"""scripts/slurm/train.sbatch under stand-ins for SLURM's commands: what it starts, and when it queues the job again."""

import json
import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Two machines, one after the other; SLURM's own options are dropped.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
worst=0
for node in 0 1; do
    SLURM_NODEID=$node "$@" || { status=$?; [ $status -gt $worst ] && worst=$status; }
done
exit $worst
"""
ACCELERATE = """#!/usr/bin/env python3
import json, os, signal, sys, time
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"], *sys.argv[1:]]) + "\\n")
if os.environ["BEHAVIOUR"] == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.kill(os.getppid(), signal.SIGTERM)  # SLURM signals every process of a step
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(1 if os.environ["BEHAVIOUR"] == "fails" else 0)
"""


def submit(folder: Path, behaviour: str, *arguments: str) -> tuple[int, list[list[str]], str]:
    """Exit status, what accelerate was called with on each machine, and what scontrol was asked for."""
    commands = folder / "commands"
    commands.mkdir()
    for name, text in {
        "srun": SRUN,
        "accelerate": ACCELERATE,
        "scontrol": f'#!/bin/bash\necho "$@" > {folder}/scontrol\n',
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    variables = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SEEN": str(folder / "seen"),
        "BEHAVIOUR": behaviour,
        "SLURM_JOB_ID": "123456",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    script = ROOT / "scripts" / "slurm" / "train.sbatch"
    command = ["bash", str(script), *arguments]
    status = subprocess.run(command, cwd=folder, env=os.environ | variables, timeout=60, check=False).returncode
    calls, asked = folder / "seen", folder / "scontrol"
    seen = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return status, seen, asked.read_text().strip() if asked.exists() else ""


def test_a_launcher_starts_on_each_machine(tmp_path: Path) -> None:
    status, seen, asked = submit(tmp_path, "succeeds", "some.yaml", "--train", "my pairs.jsonl")
    assert (status, asked) == (0, "")
    for rank, (timeout, *call) in enumerate(seen):
        assert 30 < int(timeout) < 300, "longer than a save takes, shorter than SLURM waits"
        given = dict(zip(call[1:13:2], call[2:13:2], strict=True))
        assert call[0] == "launch"
        assert given["--config_file"] == "some.yaml"
        assert (given["--num_machines"], given["--num_processes"], given["--machine_rank"]) == ("2", "16", str(rank))
        assert given["--main_process_ip"] == os.uname().nodename
        assert given["--main_process_port"] == str(20000 + 123456 % 10000)
        assert call[13:] == ["train/embed.py", "--resume", "true", "--train", "my pairs.jsonl"]
    assert len(seen) == 2


def test_a_job_that_was_stopped_is_queued_again(tmp_path: Path) -> None:
    status, _, asked = submit(tmp_path, "waits", "some.yaml", "--train=pairs.jsonl")
    assert (status, asked) == (128 + signal.SIGTERM, "requeue 123456")


def test_a_job_that_failed_is_not(tmp_path: Path) -> None:
    status, _, asked = submit(tmp_path, "fails", "some.yaml", "--train=pairs.jsonl")
    assert (status, asked) == (1, "")


def test_a_job_without_arguments_says_what_it_needs(tmp_path: Path) -> None:
    assert submit(tmp_path, "succeeds", "some.yaml") == (2, [], "")
