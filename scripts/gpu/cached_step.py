"""The two-pass step: the same gradient whatever activations it keeps, with dropout on."""

import math

import torch
from torch import Tensor

from nestling.batches.packing import pack
from nestling.training.cached import ActivationBudget
from scripts.gpu.attention import relative_difference
from scripts.gpu.models import random_texts
from scripts.gpu.place import Place
from scripts.gpu.training_step import TEXTS, TrainingStep, load


def check(place: Place) -> None:
    """Gradients with no, some and all activations kept."""
    model = load(place, place.work / "embedder", "lora", dropout=0.2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at the start, under which A would have no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    step = TrainingStep(place, model, random_texts(TEXTS * 16, place))
    positions = sum(chunk.positions for chunk in pack(step.ids, 256, 0).chunks)
    wanted = gradient(step, math.inf)
    assert float(wanted.norm()) > 0
    for name, memory in (("no", 0.0), ("some", positions / 2)):
        limit = place.size(1e-2, 1e-6)  # a GPU's kernels add in another order each time
        place.require(
            f"gradient with {name} activations kept", relative_difference(gradient(step, memory), wanted), limit
        )
    torch.manual_seed(8)
    other = gradient(step, math.inf, seed=8)
    if relative_difference(other, wanted) < 0.1:
        raise AssertionError("another dropout changes the gradient by less than a tenth: this check sees nothing")


def gradient(step: TrainingStep, positions: float, seed: int = 7) -> Tensor:
    """The gradient of all trained weights, with activations of so many positions kept."""
    step.backend.zero_grad()
    torch.manual_seed(seed)
    step.backward(step.batch(256), ActivationBudget(positions, 1.0))
    return torch.cat([each.grad.flatten() for each in step.model.parameters() if each.grad is not None])
