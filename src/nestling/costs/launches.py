"""Fractions of the training state that a rank holds with each backend."""

from nestling.backends.fsdp import fsdp_fractions
from nestling.backends.prepare import gradients_fit
from nestling.backends.sizes import StateFractions, full_bytes, moments_of, trained_bytes
from nestling.backends.zero import zero_fractions
from nestling.config.costs import LaunchCosts
from nestling.config.training import OptimName
from nestling.models.token_model import TokenModel


def state_fractions(
    launch: LaunchCosts, model: TokenModel, device_memory: float, optim: OptimName = "adamw_torch_fused"
) -> tuple[StateFractions, bool]:
    """Fractions that a rank holds, and whether it holds whole gradients.

    Whole gradients are kept if they fit into half of the memory that is free without them.

    Args:
        launch: How training is launched.
        model: The model.
        device_memory: Bytes of a device.
        optim: The optimizer.
    """
    if launch.backend in ("one", "ddp"):
        return StateFractions(optimizer=moments_of(model, optim)), True
    least = fractions_with(launch, full_gradients=False)
    full_gradients = gradients_fit(trained_bytes(model), free_memory(launch, least, model, device_memory))
    return fractions_with(launch, full_gradients=full_gradients), full_gradients


def fractions_with(launch: LaunchCosts, *, full_gradients: bool) -> StateFractions:
    """Fractions that a rank holds of a sharded model with whole or sharded gradients."""
    ranks, backend = launch.num_processes, launch.backend
    if backend == "fsdp2":
        return fsdp_fractions(ranks, full_gradients=full_gradients)
    stage, offloaded = int(backend[4]), backend.endswith("offload")
    return zero_fractions(stage, ranks, full_gradients=full_gradients, offloaded=offloaded)


def free_memory(launch: LaunchCosts, fractions: StateFractions, model: TokenModel, device_memory: float) -> float:
    """Free bytes with the weights loaded, and with the optimizer state if DeepSpeed allocates it at the start."""
    weights = fractions.weights * full_bytes([*model.parameters(), *model.buffers()])
    early = fractions.optimizer * trained_bytes(model) if launch.backend.startswith("zero") else 0.0
    return device_memory - weights - early
