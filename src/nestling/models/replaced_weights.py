"""A model computes in float32 with weights of another type, without a second copy of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import linear

from nestling.models.adapter_merging import bare_name
from nestling.models.answer_head import AnswerHead

# Most elements of a linear layer's weight that are cast at once: an output layer has a row for each token.
PIECE = 2**24


@contextmanager
def weights_replaced(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """A context in which a model computes with other weights, or with its own, cast to float32.

    The weights of each module are replaced just before it runs and restored right after it, so that only one module at
    a time has a copy in float32. Of a table of embeddings only the rows that were looked up are cast. In models with
    weights of three dimensions (causal convolutions in Mamba, LFM2 and Qwen3-Next, JetMoe) modules use each other's:
    all are replaced for the whole context.

    Args:
        model: A model; adapters in it keep their weights.
        weights: By the names that `nestling.models.merged_weights.MergedWeights` has; None for its own.
    """
    if any(each.dim() == 3 and name.endswith(".weight") for name, each in model.named_parameters()):
        with all_weights_replaced(model, weights):
            yield
        return
    originals: list[tuple[nn.Parameter, Tensor]] = []

    def replace(prefix: str) -> Any:
        def before(module: nn.Module, inputs: object, settings: Mapping[str, object]) -> None:
            precision = None if casts_rows(module, settings) else torch.float32
            replaced = {id(parameter) for parameter, _ in originals}
            for name, parameter in owner_of(module).named_parameters(recurse=False):
                # Not a quantised one, and none twice: adapters of experts use their weights before the experts run.
                if parameter.is_floating_point() and id(parameter) not in replaced:
                    originals.append((parameter, parameter.data))
                    tensor = parameter if weights is None else weights[f"{prefix}{name}"]
                    parameter.data = tensor.detach().to(parameter.device, precision)

        return before

    def restore(module: nn.Module, inputs: object = None, output: Tensor | None = None) -> Tensor | None:
        own = {id(parameter) for parameter in owner_of(module).parameters(recurse=False)}
        for parameter, data in [each for each in originals if id(each[0]) in own]:
            parameter.data = data
        originals[:] = [each for each in originals if id(each[0]) not in own]
        return output.float() if output is not None and type(module) is nn.Embedding else None

    handles, in_pieces = [], []
    for name, module in model.named_modules():
        if ".lora_" in f".{name}" or not any(True for _ in owner_of(module).parameters(recurse=False)):
            continue
        if weights is None and type(module) is nn.Linear and module.weight.numel() > PIECE:
            in_pieces.append(module)
            module.forward = partial(linear_in_pieces, module)  # type: ignore[method-assign]
            continue
        prefix = f"{bare_name(name)}.".removeprefix(".")
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


@contextmanager
def all_weights_replaced(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """As `weights_replaced`, with a whole copy in float32."""
    originals = [(name, each, each.data) for name, each in model.named_parameters() if ".lora_" not in f".{name}"]
    for name, parameter, data in originals:
        if parameter.is_floating_point():  # not quantised
            tensor = data if weights is None else weights[bare_name(name)]
            parameter.data = tensor.detach().to(parameter.device, torch.float32)
    try:
        yield
    finally:
        for _, parameter, data in originals:
            parameter.data = data


def owner_of(module: nn.Module) -> nn.Module:
    """The module whose parameters one uses when it runs: itself, or the experts of an adapter of their tensors."""
    return module.get_base_layer() if isinstance(module, ParamWrapper) else module


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
