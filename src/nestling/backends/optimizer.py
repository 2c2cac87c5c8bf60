"""AdamW, its learning rate, and gradient clipping."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from nestling.backends.sizes import full_shape


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> AdamW:
    """Fused AdamW over the trainable parameters; weight decay for matrices only, not for biases and norm weights."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if len(full_shape(parameter)) >= 2]
    vectors = [parameter for parameter in trainable if len(full_shape(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a global L2 norm of at most `max_norm`, unless that is 0; returns the norm before.

    If the norm is not finite the gradients are left unchanged: the caller should skip the step.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
    if 0 < max_norm < norm < math.inf:
        torch._foreach_mul_(gradients, max_norm / norm)
    return norm
