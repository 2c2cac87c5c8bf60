"""What a step needs in memory, measured and estimated before the first one."""

import os
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from nestling.optim import whole_shape
from nestling.packing import Chunk


def free_memory(device: torch.device) -> float:
    """Bytes that are free for this process: on its device, or its share of the machine's for a CPU."""
    if device.type == "cpu":
        return float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return float(torch.get_device_module(device).mem_get_info(device)[0])


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that are trained, whole: those of a gradient, or of a moment of AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(whole_shape(each).numel() * each.element_size() for each in trained)


def graph_bytes(model: nn.Module, encode: Callable[[Chunk], Tensor], chunk: Chunk) -> int:
    """Bytes that the graph of a chunk holds beside the parameters.

    Args:
        model: Whose parameters do not count.
        encode: Runs it on a chunk.
        chunk: Run twice: what the second graph shares with the first, such as cast weights, does not count either.
    """
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        first = encode(chunk)
        seen |= found.keys()
        found.clear()
        second = encode(chunk)
    del first, second
    return sum(found.values())


def sample_chunk(length: int, positions: int, vocabulary: int, device: torch.device) -> Chunk:
    """Texts of `length` random tokens that fill `positions`, at least one."""
    rows = max(1, positions // length)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocabulary, (rows, length), generator=generator)
    return Chunk(input_ids, torch.full((rows,), length), padded=False).to(device)
