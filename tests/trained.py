"""Models as they are after training, without it."""

from typing import TypeVar

import torch
from transformers import PreTrainedModel

from nestling.models.adapters import attach_lora
from nestling.models.token_model import TokenModel

Model = TypeVar("Model", bound=TokenModel)


def with_lora(model: Model, *, scale: float = 0.05, seed: int = 3) -> Model:
    """Adapters as after training: A and B random, neither zero."""
    assert isinstance(model.backbone, PreTrainedModel)
    model.backbone = attach_lora(model.backbone, r=4, alpha=8, dropout=0.1)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.backbone.named_parameters():
        if ".lora_" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


def with_noise(model: Model, *, scale: float = 0.05) -> Model:
    """Weights as after full fine-tuning."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.backbone.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model
