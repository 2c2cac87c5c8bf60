"""Transformer layers compiled by torch.compile, which fuses their elementwise operations into few kernels.

One program serves all layers and shapes of chunks; others come about for passes without gradients, for the first layer,
whose input needs none under LoRA, and for chunks of one text or one position.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter

from nestling.console import say_once
from nestling.gpu import COMPILE
from nestling.models.token_model import TokenModel

# Programs for one kind of layer, of which training and evaluation need about thirty; torch gives up above 8.
MOST_PROGRAMS = 64


def compile_layers(model: TokenModel) -> None:
    """Have torch compile each transformer layer in place when it is first run.

    Raises:
        ValueError: The model is quantised, reads packed texts, whose lengths would each ask for programs of their own,
            or has dropout, of which the two passes of a step would draw other numbers.
    """
    if model.padding_free:
        raise ValueError(f"{COMPILE}=1 compiles no layers for packed texts; set attn_implementation: sdpa, or unset it")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"{COMPILE}=1 compiles no model that is held in 4 bits; use tuning: lora, or unset it")
    dropout = greatest_dropout(model)
    if dropout > 0:
        raise ValueError(
            f"{COMPILE}=1: the model has dropout of {dropout:g}, which compiled layers would draw anew in the second "
            "pass of a step; set dropout: 0 and lora.dropout: 0, or unset it"
        )
    torch._dynamo.config.recompile_limit = MOST_PROGRAMS
    torch._dynamo.config.suppress_errors = True  # what cannot be traced runs as it is
    for layer in transformer_layers(model):
        layer.compile(dynamic=True, backend=compiled_or_not)


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a model's transformer layers: of its lists of modules, the one with the most parameters."""
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    return max(lists, key=lambda each: sum(parameter.numel() for parameter in each.parameters()))


def greatest_dropout(model: nn.Module) -> float:
    """The greatest probability of its dropout modules and of dropout in attention."""
    modules = list(model.modules())
    inside = [each.p for each in modules if isinstance(each, nn.Dropout)]
    return max([0.0, *inside, *(float(getattr(each, "attention_dropout", 0.0)) for each in modules)])


def compiled_or_not(graph: GraphModule, inputs: Sequence[Any]) -> Any:
    """A backend of torch.compile: inductor, and the graph as it is where inductor fails, such as without a compiler."""
    from torch._inductor.compile_fx import compile_fx  # seconds, which only those wait for who compile

    return compile_fx(graph, list(inputs), inner_compile=_compile)


def _compile(graph: GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
    from torch._inductor.compile_fx import compile_fx_inner

    spare = deepcopy(graph)  # a compilation that fails may have changed the graph
    try:
        return compile_fx_inner(graph, inputs, **settings)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        say_once(f"{COMPILE}=1: torch.compile failed, so layers run without it: {type(error).__name__}: {reason}")

    def run(arguments: list[Any]) -> Any:
        return Interpreter(spare).boxed_run(arguments)

    run._boxed_call = True  # type: ignore[attr-defined]  # it clears the list of its arguments
    return run
