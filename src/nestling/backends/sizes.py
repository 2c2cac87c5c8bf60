"""What a rank holds of a model in training, and how much memory is free for it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StateFractions:
    """What a rank holds of a model in training.

    Args:
        weights: Of all parameters and buffers.
        gradients: Of the trained parameters' size, at the most.
        optimizer: Of the trained parameters' size: AdamW's two moments, and the weights that it updates where these are
            a copy.
    """

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 2.0


def free_memory(device: torch.device) -> float:
    """Bytes that are free for this process: on its device, or its share of the machine's for a CPU."""
    if device.type == "cpu":
        return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return float(torch.get_device_module(device).mem_get_info(device)[0])


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that are trained, whole: those of a gradient, or of a moment of AdamW."""
    return whole_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


def whole_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, of those in shards as a whole."""
    return sum(whole_shape(each).numel() * each.element_size() for each in tensors)


def whole_shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter; one that ZeRO-3 has taken into shards is empty, and carries it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
