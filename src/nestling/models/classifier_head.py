"""The head of a classifier of one label: all but its transformer, and the pooler that some have inside of that."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from nestling.models.checked_loading import MayLack, is_pooler
from nestling.models.compiled_layers import transformer_layers


class Float32Output(nn.Linear):
    """A linear layer whose output is float32 (at least) under autocast too: in bfloat16, many scores would be equal."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch calls it
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            return linear(input.to(wide), self.weight.to(wide), bias)


def compute_output_in_float32(classifier: Any) -> None:
    """Have the last layer of a head, the one with a single output, compute in float32."""
    for module in classifier.modules():
        if type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = Float32Output


def in_head(kind: type[PreTrainedModel] | None) -> MayLack:
    """Whether a weight of a class is of its head; `None` is code of a model's own."""
    if kind is None:
        return lambda name: is_pooler(name) or name.startswith("classifier.")
    prefix = f"{kind.base_model_prefix}."
    return lambda name: is_pooler(name) or not name.startswith(prefix)


def nothing(name: str) -> bool:
    """No weight: a cross-encoder has its head, pooler included."""
    return False


def head_parameters(classifier: nn.Module) -> list[nn.Parameter]:
    """All that is not of the transformer, and its pooler, which classifiers read where there is one."""
    belongs = in_head(cast(Any, type(classifier)))
    return [each for name, each in classifier.named_parameters() if belongs(name)]


def stack_of(transformer: nn.Module) -> nn.Module:
    """The module that runs the transformer's layers."""
    layers = transformer_layers(transformer)
    return next(each for each in transformer.modules() if any(child is layers for child in each.children()))
