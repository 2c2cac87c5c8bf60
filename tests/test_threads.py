"""The environment of OpenMP that scripts set before torch is imported."""

import json
import os
import subprocess
import sys

import pytest

from nestling.threads import usable_cores

SCRIPT = """
import json, os, sys
from dataclasses import dataclass
from nestling.config import parse_config
@dataclass(frozen=True)
class Empty:
    "No settings."
parse_config(Empty, None, [])
assert "torch" not in sys.modules
import torch
print(json.dumps([os.environ["OMP_WAIT_POLICY"], os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()]))
"""


def started(**environment: str) -> tuple[str, str | None, int]:
    """Wait policy, number of threads that was set, and torch's, of a script in an environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "LOKY_", "LOCAL_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    policy, threads, used = json.loads(done.stdout)
    return policy, threads, used


def test_threads_sleep_while_they_wait_and_are_all_used_on_free_cores() -> None:
    assert started()[:2] == ("PASSIVE", None)


@pytest.mark.skipif(usable_cores() < 2, reason="one core")
def test_threads_keep_within_the_quota_and_are_shared_by_the_ranks_of_a_machine() -> None:
    # As joblib reads a container's quota, so it reads this.
    assert started(LOKY_MAX_CPU_COUNT="1") == ("PASSIVE", "1", 1)
    assert started(LOCAL_WORLD_SIZE=str(usable_cores())) == ("PASSIVE", "1", 1)
    assert started(LOCAL_WORLD_SIZE="1000") == ("PASSIVE", "1", 1)


def test_what_the_user_sets_stays() -> None:
    assert started(OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="1") == ("ACTIVE", "1", 1)
