"""A model computes in float32 with weights of another type, without a second copy of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nestling.models.answer_head import AnswerHead

# Most elements of a linear layer's weight that are cast at once: an output layer has a row for each token.
PIECE = 2**24


@contextmanager
def weights_replaced(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """A context in which a model computes with other weights, or with its own, cast to float32.

    The weights of each module are replaced just before it runs and restored right after it, so that only one module at
    a time has a copy in float32. Of a table of embeddings only the rows that were looked up are cast.

    Args:
        model: A model; adapters in it keep their weights.
        weights: By the names that `nestling.models.merged_weights.MergedWeights` has; None for its own.
    """
    originals: list[tuple[nn.Parameter, Tensor]] = []

    def replace(prefix: str) -> Any:
        def before(module: nn.Module, inputs: object, settings: Mapping[str, object]) -> None:
            precision = None if casts_rows(module, settings) else torch.float32
            for name, parameter in module.named_parameters(recurse=False):
                originals.append((parameter, parameter.data))
                tensor = parameter if weights is None else weights[f"{prefix}{name}"]
                parameter.data = tensor.detach().to(parameter.device, precision)

        return before

    def restore(module: nn.Module, inputs: object = None, output: Tensor | None = None) -> Tensor | None:
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        for parameter, data in [each for each in originals if id(each[0]) in own]:
            parameter.data = data
        originals[:] = [each for each in originals if id(each[0]) not in own]
        return output.float() if output is not None and type(module) is nn.Embedding else None

    handles, in_pieces = [], []
    for name, module in model.named_modules():
        if ".lora_" in f".{name}" or not any(True for _ in module.parameters(recurse=False)):
            continue
        if weights is None and type(module) is nn.Linear and module.weight.numel() > PIECE:
            in_pieces.append(module)
            module.forward = partial(linear_in_pieces, module)  # type: ignore[method-assign]
            continue
        prefix = f"{name}.".replace(".base_layer.", ".").removeprefix(".")
        handles.append(module.register_forward_pre_hook(replace(prefix), with_kwargs=True))
        handles.append(module.register_forward_hook(restore))
    try:
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        for handle in handles:
            handle.remove()
        for layer in in_pieces:
            del layer.forward


def casts_rows(module: nn.Module, settings: Mapping[str, object]) -> bool:
    """Whether a module reads single rows of its weight, which are then cast; subclasses may compute with the weight."""
    if isinstance(module, AnswerHead):
        return not settings.get("full_vocabulary")
    return type(module) is nn.Embedding


def linear_in_pieces(layer: nn.Linear, states: Tensor) -> Tensor:
    """A linear layer in float32, some outputs at a time."""
    rows = max(1, PIECE // layer.in_features)
    outputs = [linear(states, weight.float()) for weight in layer.weight.split(rows)]
    whole = torch.cat(outputs, dim=-1)
    return whole if layer.bias is None else whole + layer.bias.float()
