"""The groups of a launch, and processes that a rank of it starts."""

import subprocess
from datetime import timedelta

import pytest
from ranks import ROOT, environment, python

from nestling.distributed.launch import COLLECTIVE_TIMEOUT, outside_launch, require_all_processes


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "command",
    [
        "python /bin/accelerate launch --cpu --num_processes 2 train/embed.py --model m",
        "accelerate launch --num-processes=2 --cpu train/embed.py",
    ],
)
def test_accelerate_that_starts_one_process_of_several_is_told(command: str) -> None:
    with pytest.raises(ValueError, match=r"asked for 2 processes and started one, .* torchrun --nproc_per_node 2"):
        require_all_processes(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch --num_processes 1 train/embed.py",
        "accelerate launch train/costs.py --num_processes 2",
        "bash run --num_processes 2",
        "",
    ],
)
def test_one_process_that_was_asked_for_is_fine(command: str) -> None:
    require_all_processes(command.split())
