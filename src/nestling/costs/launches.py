"""What a rank of each backend holds, with a device of a given size."""

from nestling.backends.fsdp import fsdp_fractions
from nestling.backends.prepare import gradients_fit
from nestling.backends.sizes import StateFractions, full_bytes, trained_bytes
from nestling.backends.zero import zero_fractions
from nestling.config.costs import LaunchCosts
from nestling.models.token_model import TokenModel


def shares_of(launch: LaunchCosts, model: TokenModel, room: float) -> tuple[StateFractions, bool]:
    """What a rank holds of a model, and whether whole gradients: where they fit into half of what is free without."""
    least = shares_with(launch, full_gradients=False)
    whole = gradients_fit(trained_bytes(model), free_beside(launch, least, model, room))
    return shares_with(launch, full_gradients=whole), whole


def shares_with(launch: LaunchCosts, *, full_gradients: bool) -> StateFractions:
    ranks, backend = launch.num_processes, launch.backend
    if backend == "fsdp2":
        return fsdp_fractions(ranks, full_gradients=full_gradients)
    if backend.startswith("zero"):
        stage, offloaded = int(backend[4]), backend.endswith("offload")
        return zero_fractions(stage, ranks, full_gradients=full_gradients, offloaded=offloaded)
    return StateFractions()


def free_beside(launch: LaunchCosts, shares: StateFractions, model: TokenModel, room: float) -> float:
    """What is free once weights are there, and the optimizer's state where DeepSpeed makes it at once."""
    weights = shares.weights * full_bytes([*model.parameters(), *model.buffers()])
    early = shares.optimizer * trained_bytes(model) if launch.backend.startswith("zero") else 0.0
    return room - weights - early
