"""The card, and the versions of what runs on it."""

import platform
from importlib.metadata import version

import torch

from scripts.gpu.place import Place

PACKAGES = ("torch", "transformers", "accelerate", "peft", "sentence-transformers", "triton")


def describe(place: Place) -> None:
    """Write down the machine, and compute something on it."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    facts: dict[str, object] = {"device": f"a CPU with {torch.get_num_threads()} threads"}
    if gpu:
        properties = torch.cuda.get_device_properties(device)
        facts = {
            "device": properties.name,
            "GiB": round(properties.total_memory / 2**30, 1),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    assert torch.ones(8, device=device).sum().item() == 8
    place.add("machine", **facts, gpu=gpu, Python=platform.python_version(), **versions())


def versions() -> dict[str, str]:
    """The versions of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found
