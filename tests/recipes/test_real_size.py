"""The bench of a model's whole life, on a small one."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench" / "real_size.py"
PHASES = [
    "train until killed",
    "resume for a step",
    "export after training",
    "load a checkpoint",
    "export of a checkpoint",
    "evaluate",
    "merge two",
    "export of the merge",
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it measures memory in /proc")
@pytest.mark.parametrize(("kind", "tuning"), [("embedder", "lora"), ("reranker", "full")])
def test_from_training_that_is_killed_to_a_merge(tmp_path: Path, kind: str, tuning: str) -> None:
    size = ["--hidden", "64", "--layers", "2", "--shard", "5MB"]
    command = [sys.executable, str(BENCH), "--output", str(tmp_path / "out"), "--kind", kind, "--tuning", tuning, *size]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["phase", *PHASES]
    assert len(list((tmp_path / "out" / "base").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()
