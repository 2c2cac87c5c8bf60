"""Parameter groups and the course of the learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from nestling.backends.sizes import whole_shape


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> AdamW:
    """Fused AdamW over the trainable parameters; only matrices decay, not biases and gains."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if len(whole_shape(parameter)) >= 2]
    vectors = [parameter for parameter in trainable if len(whole_shape(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients, down to a global L2 norm of at most `max_norm`, unless it is 0; the norm before.

    A non-finite norm leaves the gradients as they are, for the caller to skip the step.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
    if 0 < max_norm < norm < math.inf:
        torch._foreach_mul_(gradients, max_norm / norm)
    return norm
