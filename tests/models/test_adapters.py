"""LoRA adapters that read and write less memory than peft's, with the same numbers."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.training.memory import sample_chunk


def with_adapters(qwen3: Path, precision: torch.dtype, alpha: int = 8, seed: int = 0) -> Embedder:
    torch.manual_seed(seed)
    model = Embedder.from_pretrained(qwen3, dtype=precision, precision=precision, attn_implementation="sdpa")
    model.backbone = attach_lora(model.backbone, r=4, alpha=alpha, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which gives the other factor no gradient
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def lora_layers(model: Embedder) -> Iterator[LoraLayer]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def step(model: Embedder) -> list[Tensor]:
    """The output for some texts, and the gradients of all adapters."""
    output = model(sample_chunk(12, 48, 60, torch.device("cpu")))
    # The sum of squares of a normalised state is constant, and its gradient rounding.
    (output * torch.linspace(-1, 1, output.shape[1])).sum().backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    return [output.detach(), *gradients]


def as_peft(model: Embedder) -> Embedder:
    """The model with peft's own adapters."""
    for layer in lora_layers(model):
        layer.cast_input_dtype_enabled = True
        layer.lora_variant.clear()
    return model


def test_adapters_compute_bit_for_bit_what_those_of_peft_do(qwen3: Path) -> None:
    model = with_adapters(qwen3, torch.float32)
    found, wanted = step(model), step(as_peft(model))
    assert len(found) > 10
    assert all(each.abs().max() > 0 for each in found)
    assert all(map(torch.equal, found, wanted))


def bfloat16_errors(qwen3: Path, seed: int) -> list[list[float]]:
    """Relative errors of the output and of all gradients together, for each our adapters' and those of peft."""
    model = with_adapters(qwen3, torch.bfloat16, seed=seed)
    ours, theirs = step(model), step(as_peft(model))
    exact_model = model.double()
    exact_model.precision = torch.float64
    exact = step(exact_model)
    errors = []
    for part in (slice(0, 1), slice(1, None)):
        true, *both = (torch.cat([each.double().flatten() for each in found[part]]) for found in (exact, ours, theirs))
        errors.append([float((each - true).norm() / true.norm()) for each in both])
    return errors


def test_in_bfloat16_adapters_are_no_farther_from_float32_than_those_of_peft(qwen3: Path) -> None:
    """Over many draws of weights: of one draw either may come out a fifth farther, and it depends on the processor."""
    errors = torch.tensor([bfloat16_errors(qwen3, seed) for seed in range(16)]).square().mean(0).sqrt()
    for ours, theirs in errors.tolist():
        assert 1e-4 < ours <= 1.1 * theirs < 0.1


def test_a_scale_that_is_no_power_of_two_differs_by_rounding(qwen3: Path) -> None:
    model = with_adapters(qwen3, torch.float32, alpha=7)
    found = step(model)
    for ours, theirs in zip(found, step(as_peft(model)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Operations(TorchDispatchMode):
    """Records the names of all operations, and the shapes of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.casts: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        if func.name() == "aten::_to_copy":
            self.casts.append(tuple(args[0].shape))
        return func(*args, **kwargs or {})


def test_no_input_of_an_adapter_is_cast(qwen3: Path) -> None:
    model, chunk = with_adapters(qwen3, torch.bfloat16), sample_chunk(12, 48, 60, torch.device("cpu"))
    with model.computing(), Operations() as ours:
        model(chunk)
    with model.computing(), Operations() as theirs:
        as_peft(model)(chunk)
    inputs = len(list(lora_layers(model)))
    assert len([shape for shape in theirs.casts if len(shape) == 3]) >= inputs + len(
        [shape for shape in ours.casts if len(shape) == 3]
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_forward_of_a_decoder_waits_for_no_number(qwen3: Path, attention: str) -> None:
    """transformers looks for packed texts in every forward unless it gets a mask for each type of layer."""
    model = Embedder.from_pretrained(qwen3, attn_implementation=attention)
    with Operations() as seen:
        model(sample_chunk(12, 48, 60, torch.device("cpu")))
    waits = [name for name in seen.names if name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")]
    assert bool(waits) == (attention == "eager")  # whose mask has to be made


@pytest.mark.parametrize("safe", [False, True])
def test_adapters_merge_as_those_of_peft_do(qwen3: Path, safe: bool) -> None:
    model = with_adapters(qwen3, torch.float32)
    wanted = copy.deepcopy(model.backbone)
    for module in wanted.modules():
        if isinstance(module, LoraLayer):
            module.lora_variant.clear()
    model.backbone.merge_adapter(safe_merge=safe)
    wanted.merge_adapter(safe_merge=safe)
    weights = dict(wanted.named_parameters())
    assert all(torch.equal(each, weights[name]) for name, each in model.backbone.named_parameters())
    model.backbone.unmerge_adapter()
    wanted.unmerge_adapter()
    assert all(torch.equal(each, weights[name]) for name, each in model.backbone.named_parameters())
