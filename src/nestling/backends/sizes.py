"""Memory: the fraction of a model's state on one rank, bytes of parameters, free bytes."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from nestling.config.training import OptimName

# Moments of 8 bits, of torchao and bitsandbytes alike: for tensors of so many numbers, with a scale for each block.
LEAST_8_BIT, BLOCK = 4096, 256


@dataclass(frozen=True)
class StateFractions:
    """The size of a model's state in training on one rank, as multiples of the full size.

    Args:
        weights: Multiple of the size of all parameters and buffers.
        gradients: Multiple of the size of the trained parameters, at the peak.
        optimizer: Multiple of the size of the trained parameters: AdamW's two moments (`moments_of`), and the
            copy of the weights that DeepSpeed updates.
    """

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 2.0


def free_memory(device: torch.device) -> float:
    """Free bytes of memory for this process: those of its GPU, or those of the machine divided by its local ranks.

    What torch's allocator holds in reserve on a GPU is free for the process, though the driver counts it as used.
    """
    if device.type == "cpu":
        return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpu = torch.get_device_module(device)
    return float(gpu.mem_get_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device))


def trained_bytes(model: nn.Module) -> int:
    """Bytes of all trained parameters, unsharded; full gradients have the same size, AdamW's moments `moments_of`."""
    return full_bytes(trained_parameters(model))


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def embedding_tables(model: nn.Module) -> list[nn.Embedding]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def moments_of(model: nn.Module, optim: OptimName) -> float:
    """The size of AdamW's two moments, as a multiple of the size of the trained parameters.

    Those of 8 bits have a scale in float32 for each block. Those of small tensors, and of token embeddings
    (`nestling.backends.optimizer`), keep the dtype of the weights.
    """
    if optim == "adamw_torch_fused":
        return 2.0
    embeddings = {table.weight for table in embedding_tables(model)}
    sizes = 0.0
    for parameter in trained_parameters(model):
        numbers = full_shape(parameter).numel()
        short = numbers >= LEAST_8_BIT and numbers % BLOCK == 0 and parameter not in embeddings
        sizes += 2 * numbers * (1 + 4 / BLOCK if short else parameter.element_size())
    return sizes / trained_bytes(model)


def full_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, unsharded."""
    return sum(full_shape(each).numel() * each.element_size() for each in tensors)


def full_shape(parameter: Tensor) -> torch.Size:
    """Unsharded shape of a parameter; ZeRO-3 leaves an empty tensor with the shape as an attribute."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
