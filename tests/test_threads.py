"""The environment of OpenMP that scripts set before torch is imported."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from nestling.threads import limit_threads, others_are_busy, usable_cores

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
print(json.dumps([os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()]))
"""


def started(**environment: str) -> tuple[str | None, str | None, int]:
    """Wait policy, number of threads that was set, and torch's, of a script in an environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "LOKY_", "LOCAL_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    policy, threads, used = json.loads(done.stdout)
    return policy, threads, used


def test_threads_sleep_while_they_wait_beside_busy_processes() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        assert started()[:2] == ("PASSIVE", None)
    finally:
        for each in busy:
            each.kill()
            each.wait()


@pytest.mark.parametrize(("shares", "policy"), [([5.0, 10.0], None), ([5.0, 90.0], "PASSIVE")])
def test_threads_spin_on_free_cores(monkeypatch: pytest.MonkeyPatch, shares: list[float], policy: str | None) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: shares)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "2"})
    limit_threads()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_cores_that_this_process_may_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: [100.0, 0.0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1}, raising=False)
    assert not others_are_busy()


@pytest.mark.skipif(usable_cores() < 2, reason="one core")
def test_threads_keep_within_the_quota_and_are_shared_by_the_ranks_of_a_machine() -> None:
    # As joblib reads a container's quota, so it reads this.
    assert started(LOKY_MAX_CPU_COUNT="1")[1:] == ("1", 1)
    assert started(LOCAL_WORLD_SIZE="1000")[1:] == ("1", 1)


def test_what_the_user_sets_stays() -> None:
    assert started(OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="1") == ("ACTIVE", "1", 1)
