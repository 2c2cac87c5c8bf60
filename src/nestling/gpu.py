"""Settings of torch for GPUs that every recipe and script makes for its process; none of them has run on a GPU yet."""

import os
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# Names of the allocator's settings in torch 2.11 to 2.13. What the user sets stays.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


# Set to 1, it asks for kernels that give the same bits each time; cuBLAS needs the other for them.
DETERMINISTIC, WORKSPACE = "NESTLING_DETERMINISTIC", "CUBLAS_WORKSPACE_CONFIG"
# Set to 1, it has training compile the layers of a model; off until it has been measured on a GPU.
COMPILE = "NESTLING_COMPILE"
# Set to 1, the two below save traffic for some rounding in precision bf16; off until they have been measured on a GPU.
# Hidden states are added up in bfloat16 between layers.
BF16_RESIDUAL = "NESTLING_BF16_RESIDUAL"
# FSDP2 gathers float32 weights as bfloat16, half the bytes, and reduces gradients in float32.
BF16_GATHERS = "NESTLING_BF16_GATHERS"


def is_on(name: str) -> bool:
    """Whether the environment sets a switch to 1."""
    return os.environ.get(name) == "1"


def set_environment() -> None:
    """Set what CUDA and torch's allocator read from the environment; to be called before torch is imported.

    Memory is mapped in segments that grow. Chunks of texts have hundreds of different shapes, and blocks of a fixed
    size that one of them has left do not fit the next, so that memory runs out while much of it lies idle.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if is_on(DETERMINISTIC):
        os.environ.setdefault(WORKSPACE, ":4096:8")


def set_up_torch() -> None:
    """Compute products of float32 matrices in float32, and choose attention kernels that need no plan for each shape.

    The environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which NGC images set, turns float32 products to TF32
    without a word: the loss, search and mining scores would keep three digits. cuDNN's attention plans its kernel
    anew for each pair of batch size and length, of which a training has hundreds.

    A process without torch is left alone.
    """
    if "torch" in sys.modules:
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_cudnn_sdp(False)
        if is_on(DETERMINISTIC):
            torch.use_deterministic_algorithms(True, warn_only=True)


def resolve_precision(precision: str) -> Literal["bf16", "fp32"]:
    """bf16 or fp32 for a setting that may be auto: bf16 on a GPU that computes in it, fp32 elsewhere."""
    import torch

    if precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def computing_dtype(precision: str) -> "torch.dtype":
    """The type of the computation for a setting: bf16, fp32 or auto."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[resolve_precision(precision)]


def best_device() -> "torch.device":
    """Where models of scripts compute: the GPU, or the CPU if there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: "torch.device") -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if device.type != "cpu":
        import torch

        torch.get_device_module(device).synchronize(device)
