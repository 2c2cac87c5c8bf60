"""The groups of a launch, and processes that a rank of it starts."""

import subprocess
from datetime import timedelta

from ranks import ROOT, environment, python

from nestling.distributed.launch import COLLECTIVE_TIMEOUT, outside_launch


def test_ranks_wait_for_rank_0_longer_than_a_collective_of_training_may_take() -> None:
    """A hang burned all GPUs for twelve hours."""
    assert timedelta(minutes=5) < COLLECTIVE_TIMEOUT <= timedelta(minutes=30)
    script = ROOT / "tests/distributed/waits.py"
    done = subprocess.run(python(str(script), ranks=2), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ended after 2 s" in done.stdout


def test_a_process_outside_the_launch_has_none_of_its_settings() -> None:
    parent = {"PATH": "/bin", "LOCAL_RANK": "1", "RANK": "1", "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_FSDP": "1"}
    environment = outside_launch(parent)
    assert environment.keys() == {"PATH", "TOKENIZERS_PARALLELISM", "PYTHONPATH"}
