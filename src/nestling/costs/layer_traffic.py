"""What one layer of a model needs on a GPU: as it is, with peft's adapters, and compiled by torch.compile."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig

from nestling.costs.fake_models import FakeModel
from nestling.costs.traffic import NONE, Traffic, TrafficCounter
from nestling.models.adapters import as_peft
from nestling.models.compiled_layers import transformer_layers
from nestling.training.memory import sample_chunk

if TYPE_CHECKING:
    from nestling.costs.planned_kernels import KernelPlan

LayerKind = Literal["peft", "plain", "compiled"]
Result = TypeVar("Result")


def layer_traffic(
    config: PretrainedConfig,
    *,
    lora: dict[str, Any] | None,
    length: int,
    positions: int,
    kind: LayerKind = "plain",
) -> tuple[Traffic, Traffic]:
    """What the forward and the backward pass of one layer need: launches a chunk, bytes and operations a token.

    Computed in bfloat16 as in training, as the difference between two layers and one.

    Args:
        config: The model's configuration.
        lora: Arguments of `attach_lora`; None for full tuning.
        length: Tokens of each text.
        positions: Tokens of a chunk.
        kind: plain; peft for adapters as peft has them; compiled for a layer that torch.compile has compiled.
    """
    positions = max(1, positions // length) * length
    one, two = (_passes(config, layers, lora, length, positions, kind) for layers in (1, 2))
    forward, backward = (
        replace((after - before).times(1 / positions), launches=after.launches - before.launches)
        for before, after in zip(one, two, strict=True)
    )
    return forward, backward


def _passes(
    config: PretrainedConfig, layers: int, lora: dict[str, Any] | None, length: int, positions: int, kind: LayerKind
) -> tuple[Traffic, Traffic]:
    """Of a model with so many layers, the second of which is of the kind."""
    small = deepcopy(config)
    small.num_hidden_layers = layers
    small.layer_types = getattr(config, "layer_types", ["full_attention"])[:1] * layers
    dtype = torch.float32 if lora is None else torch.bfloat16
    fake = FakeModel(small, dtype=dtype, precision=torch.bfloat16, lora=lora)
    fake.model.train()
    if kind == "peft":
        as_peft(fake.model)
    plan = planned(transformer_layers(fake.model)[1:]) if kind == "compiled" else None
    with fake.mode, fake.model.computing():
        chunk = sample_chunk(length, positions, config.vocab_size, torch.device("cpu"))
        # The first of many chunks casts the weights and allocates their gradients, once for all chunks of a step.
        output = fake.model(chunk, in_place=True)
        output.backward(torch.empty_like(output))
        output, forward = counted(lambda: fake.model(chunk, in_place=True), plan)
        _, backward = counted(lambda: output.backward(torch.empty_like(output)), plan)
    return forward, backward


def planned(layers: Iterable[nn.Module]) -> "KernelPlan":
    """The plan of kernels of layers, to be made when they are first run."""
    from nestling.costs.planned_kernels import KernelPlan  # with inductor, which takes seconds

    torch._dynamo.reset()  # programs of other sizes would serve, up to a limit of their number
    plan = KernelPlan()
    for layer in layers:
        layer.compile(dynamic=False, backend=plan)
    return plan


def counted(compute: Callable[[], Result], plan: "KernelPlan | None") -> tuple[Result, Traffic]:
    """The result of a computation, and what it needs with the kernels of a plan."""
    before = NONE if plan is None else plan.found
    with TrafficCounter() as counter:
        result = compute()
    after = NONE if plan is None else plan.found
    return result, counter.found + after - before
