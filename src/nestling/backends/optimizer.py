"""AdamW in its kinds, its learning rate, and gradient clipping."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from nestling.backends.sizes import embedding_tables, full_shape, trained_parameters
from nestling.config.checks import require, require_extra
from nestling.config.training import OptimName
from nestling.distributed.seeds import seed_torch

PACKAGES: dict[OptimName, str] = {
    "adamw_bnb_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "adamw_torch_8bit": "torchao",
}


def adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    beta2: float = 0.999,
    optim: OptimName = "adamw_torch_fused",
    seed: int = 0,
) -> Optimizer:
    """AdamW over the trainable parameters; weight decay for matrices only, not for biases and norm weights.

    Args:
        model: With all its parameters, trained or not.
        learning_rate: Learning rate.
        weight_decay: Weight decay of matrices.
        beta2: Decay of the second moment.
        optim: Kind of AdamW. adamw_torch_fused: torch's, one kernel for all parameters. adamw_bnb_8bit: bitsandbytes'
            with moments of 8 bits. paged_adamw_8bit: the same in memory that a GPU moves to the CPU when it needs room.
            adamw_torch_8bit: torchao's with moments of 8 bits, which rounds weights of bfloat16 stochastically.
            Moments of token embeddings keep the dtype of the weights: most rows have no gradient in a step, and divide
            by a second moment that 8 bits round to 0.
        seed: Of that rounding.
    """
    trainable = trained_parameters(model)
    matrices = [parameter for parameter in trainable if len(full_shape(parameter)) >= 2]
    vectors = [parameter for parameter in trainable if len(full_shape(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, beta2)}
    if optim == "adamw_torch_fused":
        return AdamW(groups, **settings, fused=True)
    if optim == "adamw_torch_8bit":
        return torchao_adamw(model, groups, settings, seed)
    return bitsandbytes_adamw(model, groups, settings, paged=optim == "paged_adamw_8bit")


def torchao_adamw(model: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any], seed: int) -> Optimizer:
    """torchao's AdamW with moments of 8 bits, whose stochastic rounding is a function of (seed, step).

    Its random numbers are the same on all ranks: the weights of DDP's would drift apart otherwise.
    """
    from torchao.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(groups, **settings, bf16_stochastic_round=True)
    optimizer.register_step_pre_hook(partial(before_step, seed, embedding_tables(model)))
    return optimizer


def before_step(seed: int, tables: list[nn.Embedding], optimizer: Optimizer, *_: object) -> None:
    """Seed torch before a step of torchao's AdamW, and before the first one make the moments of embeddings."""
    for table in tables:
        if table.weight.grad is not None and not optimizer.state[table.weight]:
            moments = {name: torch.zeros_like(table.weight.detach()) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[table.weight] = {"step": torch.tensor(0.0), **moments}
    first: dict[str, Any] = next(iter(optimizer.state.values()), {})
    seed_torch(seed, int(first.get("step", 0)))


def bitsandbytes_adamw(
    model: nn.Module, groups: list[dict[str, Any]], settings: dict[str, Any], *, paged: bool
) -> Optimizer:
    """bitsandbytes' AdamW with moments of 8 bits, set up as in transformers."""
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager, PagedAdamW8bit

    for table in embedding_tables(model):
        GlobalOptimManager.get_instance().register_module_override(table, "weight", {"optim_bits": 32})
    optimizer: Optimizer = (PagedAdamW8bit if paged else AdamW8bit)(groups, **settings)
    return optimizer


def require_optimizer(optim: OptimName, *, sharded: bool, device: str) -> None:
    """Raise ValueError for an optimizer that a launch cannot use, or whose package is missing.

    Args:
        optim: Its name.
        sharded: Whether DeepSpeed or FSDP2 shards the model.
        device: Type of the device.
    """
    require_whole(optim, sharded=sharded)
    if optim in PACKAGES:
        require_extra(f"optim: {optim}", "gpu", PACKAGES[optim])
    require(
        optim != "paged_adamw_8bit" or device == "cuda",
        f"optim: {optim} moves its moments from a CUDA GPU to the CPU, and there is no such GPU; use adamw_bnb_8bit",
    )


def require_whole(optim: OptimName, *, sharded: bool) -> None:
    """Raise ValueError for an optimizer that cannot be sharded, with a backend that shards.

    DeepSpeed updates float32 copies of the weights, which would take the memory that these optimizers save;
    bitsandbytes takes no DTensor, and torchao 0.18 fails on those of bfloat16.
    """
    require(
        not sharded or optim == "adamw_torch_fused",
        f"optim: {optim} cannot be sharded by ZeRO or FSDP2; use DDP, which holds all of it on each GPU, or "
        "adamw_torch_fused",
    )


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, which is compiled once for all rates
            group["lr"].fill_(learning_rate)
        else:
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
