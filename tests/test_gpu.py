"""Settings of torch that recipes and scripts make, whatever the environment says."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nestling.gpu import best_device, computing_dtype, resolve_precision

SCRIPT = """
import json, os
from dataclasses import dataclass
from nestling.config import parse_config, run
@dataclass(frozen=True)
class Empty:
    "No settings."
parse_config(Empty, None, [])
import torch
before = torch.get_float32_matmul_precision()
run(lambda: print(json.dumps({
    "before": before,
    "precision": torch.get_float32_matmul_precision(),
    "tf32": torch.backends.cuda.matmul.allow_tf32,
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    "allocator": {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")},
})))
"""


def started(**environment: str) -> dict[str, object]:
    """What a script finds in an environment."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_float32_is_float32_though_the_environment_asks_for_tf32() -> None:
    found = started(TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1")
    assert found["before"] == "high"  # as in NGC images
    assert (found["precision"], found["tf32"]) == ("highest", False)


def test_attention_plans_no_kernel_for_each_shape_and_memory_grows_in_segments() -> None:
    found = started()
    assert not found["cudnn"]
    assert not found["deterministic"]
    assert found["allocator"] == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def test_an_allocator_that_the_user_sets_stays() -> None:
    asked = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert started(**asked)["allocator"] == asked


def test_deterministic_kernels_are_used_when_asked_for() -> None:
    found = started(NESTLING_DETERMINISTIC="1")
    assert (found["deterministic"], found["workspace"]) == (True, ":4096:8")


@pytest.mark.parametrize(
    ("gpu", "native", "wanted"), [(True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")]
)
def test_auto_precision_is_bf16_on_a_gpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, native: bool, wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert best_device().type == ("cuda" if gpu else "cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto") == wanted
    assert [computing_dtype(each) for each in ("bf16", "fp32")] == [torch.bfloat16, torch.float32]
