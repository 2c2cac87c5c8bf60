"""Choosing and configuring the backend that the launcher was asked for."""

import warnings
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nestling.backends.backend import Backend
from nestling.backends.ddp import Ddp
from nestling.backends.fsdp import Fsdp
from nestling.backends.plain import Plain
from nestling.backends.sizes import free_memory, moments_of, trained_bytes
from nestling.backends.zero import Zero
from nestling.config.training import OptimName
from nestling.gpu import BF16_GATHERS, COMPILE, is_on
from nestling.models.compiled_layers import compile_layers, transformer_layers
from nestling.models.token_model import TokenModel


def prepare(
    accelerator: Accelerator,
    model: TokenModel,
    optimizer: Optimizer,
    *,
    queries_per_rank: int,
    max_norm: float,
    optim: OptimName = "adamw_torch_fused",
) -> Backend:
    """Move a model and its optimizer to their device, wrap them as the launcher was asked to, and return their backend.

    Args:
        accelerator: The launched ranks and their configuration.
        model: The model; FSDP2 and ZeRO-3 shard it in place.
        optimizer: The optimizer of its trained parameters.
        queries_per_rank: Queries of a rank in a step, which DeepSpeed requires as its micro-batch size.
        max_norm: Norm that gradients are clipped to, which DeepSpeed must know beforehand.
        optim: Name of the optimizer, by which memory is estimated.

    Raises:
        ValueError: The launcher's configuration would train wrongly, or fail when it saves; or NESTLING_COMPILE is set
            for a model whose layers cannot be compiled.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        configure_zero(accelerator, queries_per_rank, max_norm)
        # DeepSpeed calls collectives by names that torch 2.13 deprecates, with a warning at each call.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if kind == DistributedType.FSDP:
        configure_fsdp(accelerator, model)
    if is_on(COMPILE):
        compile_layers(model)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    fits = gradients_fit(trained_bytes(model), free_memory(accelerator.device))
    if kind == DistributedType.DEEPSPEED:
        return Zero(model, wrapped, full_gradients=fits)
    inner = cast(Optimizer, prepared.optimizer)
    if kind == DistributedType.FSDP:
        return Fsdp(model, inner, full_gradients=fits)
    moments = moments_of(model, optim)
    if isinstance(wrapped, DistributedDataParallel):
        return Ddp(model, inner, wrapped, moments)
    return Plain(model, inner, moments)


def configure_zero(accelerator: Accelerator, queries_per_rank: int, max_norm: float) -> None:
    """Complete DeepSpeed's configuration from the recipe's settings; ValueError for a setting that contradicts them."""
    settings: dict[str, Any] = cast(Any, accelerator.state).deepspeed_plugin.deepspeed_config
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise ValueError(f"DeepSpeed is configured with ZeRO stage {stage}; use 1, 2 or 3, or DDP without DeepSpeed")
    if stage == 3 and is_on(COMPILE):
        raise ValueError(f"{COMPILE}=1 cannot compile layers that ZeRO-3 gathers; use ZeRO-2 or FSDP2, or unset it")
    for section in ("fp16", "bf16"):
        if settings.get(section, {}).get("enabled") is True:
            raise ValueError(
                f"DeepSpeed's configuration enables {section}; remove it: the recipe's own precision computes in "
                "bfloat16 over float32 weights"
            )
    clipping = settings.get("gradient_clipping", "auto")
    if clipping not in ("auto", max_norm):
        raise ValueError(
            f"gradient_clipping is {clipping} in DeepSpeed's configuration and max_grad_norm {max_norm:g} in the "
            'recipe\'s; write "auto" there'
        )
    # Without gradient_clipping, DeepSpeed would clip to 1.0.
    settings |= {
        "gradient_clipping": float(max_norm),
        "train_micro_batch_size_per_gpu": queries_per_rank,
        "gradient_accumulation_steps": 1,
    }


def configure_fsdp(accelerator: Accelerator, model: TokenModel) -> None:
    """Require FSDP2, and have the model sharded layer by layer, in precision bf16 gathered as bfloat16 if asked for."""
    plugin = cast(Any, accelerator.state).fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("this is FSDP version 1; set fsdp_version: 2 in accelerate's configuration")
    if plugin.auto_wrap_policy is None:  # without one, the full model would be gathered at once
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)
    if is_on(BF16_GATHERS) and model.precision == torch.bfloat16:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def layer_classes(model: TokenModel) -> list[str]:
    """Names of the classes of the model's transformer layers."""
    return sorted({type(layer).__name__ for layer in transformer_layers(model)})


def gradients_fit(trained: float, free: float) -> bool:
    """Whether full gradients of all trained parameters fit into half of the free memory; both in bytes."""
    return trained <= free / 2
