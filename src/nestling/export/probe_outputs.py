"""What a trained model gives for the probes of a gate, computed in several ways, each a step of the way to the files.

    trained --(a) merge the adapters--> merged --(b) round to the dtype of the files--> written

(a) and the reload of what was written must be exact. What (b) costs, and what it costs to compute in bfloat16, depends
on the model: both are measured, beside how far training has moved the outputs. Of the ways to round, the one is taken
that changes the outputs less.

Shapes: n probes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.console import working
from nestling.export.serving_files import BaseFiles
from nestling.models.adapter_merging import without_adapters
from nestling.models.merged_weights import MergedWeights, computing_with
from nestling.models.rounded_weights import RoundedWeights
from nestling.models.token_model import TokenModel
from nestling.models.weights import StoredWeights


@dataclass(frozen=True)
class ProbeOutputs:
    """Outputs for n probes, [n, ...] float32 each; computed in float32 unless said otherwise.

    Args:
        trained: By the model as it was trained, adapters on.
        merged: By its merged weights, before they are rounded.
        weights: The merged weights as they are written.
        written: By these.
        other_rounding: By the merged weights rounded in the other way; None where nothing is rounded.
        in_bfloat16: As `trained`, but computed in bfloat16; None for a model that was trained in float32.
        base: By the base's weights; None where nothing is rounded or computed in bfloat16, or without a base.
        base_in_bfloat16: The same computed in bfloat16; None where `in_bfloat16` is.
    """

    trained: Tensor
    merged: Tensor
    weights: RoundedWeights
    written: Tensor
    other_rounding: Tensor | None
    in_bfloat16: Tensor | None
    base: Tensor | None
    base_in_bfloat16: Tensor | None

    @property
    def unlearnt(self) -> bool:
        """Whether the trained model is the base."""
        return self.base is not None and torch.equal(self.merged, self.base)


def probe_outputs(
    model: TokenModel,
    weights: MergedWeights,
    dtype: torch.dtype,
    base: BaseFiles | None,
    run: Callable[[], Tensor],
    run_base: Callable[[], Tensor] | None = None,
) -> ProbeOutputs:
    """Run the probes through a model in every way.

    Args:
        model: The trained model.
        weights: Its merged weights.
        dtype: Of the files.
        base: The model before training; None for one that was not trained.
        run: Gives the model's outputs for the probes, as the model computes at that moment.
        run_base: The same with what the base has besides its transformer; by default `run`.
    """
    low = model.precision if model.precision != torch.float32 else None
    before = BaseWeights(base, model, weights) if base is not None and (dtype != torch.float32 or low) else None

    def computed(what: str, given: Mapping[str, Tensor] | None, precision: torch.dtype = torch.float32) -> Tensor:
        with working(f"outputs of {what}"), computing_with(model, given, precision=precision):
            return (run_base or run)() if given is not None and given is before else run()

    merged = computed("the merged weights", weights)
    nearest, stochastic = RoundedWeights(weights, dtype), RoundedWeights(weights, dtype, "stochastic")
    rounded = [(nearest, merged)]
    if dtype != torch.float32:
        rounded = [(each, computed(f"{each.rounding} rounding", each)) for each in (nearest, stochastic)]
        rounded.sort(key=lambda each: (each[1] - merged).square().mean().item())  # nearest first where both are NaN
    return ProbeOutputs(
        trained=computed("the trained model", None),
        merged=merged,
        weights=rounded[0][0],
        written=rounded[0][1],
        other_rounding=rounded[1][1] if len(rounded) > 1 else None,
        in_bfloat16=in_own_precision(model, run) if low else None,
        base=computed("the base", before) if before is not None else None,
        base_in_bfloat16=computed("the base in bfloat16", before, low) if before is not None and low else None,
    )


def in_own_precision(model: TokenModel, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives as the model computes by itself, but without autocast's copy of all weights."""
    with (
        working("outputs of the trained model in bfloat16"),
        torch.autocast(model.device.type, enabled=False, cache_enabled=False),
    ):
        return run()


class BaseWeights(Mapping[str, Tensor]):
    """The stored weights of the base under the names of the model that was trained from it.

    What the base does not store, such as an output layer that was made anew, is the model's own.
    """

    def __init__(self, base: BaseFiles, model: TokenModel, own: MergedWeights) -> None:
        self._prefix = f"{without_adapters(model.backbone).base_model_prefix}."
        self._stored = StoredWeights(base.source, base.subfolder)
        self._names = {name.removeprefix(self._prefix): name for name in self._stored}
        self._own = own

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names.get(self._own.first_name(name).removeprefix(self._prefix))
        return self._own[name] if stored is None else self._stored[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
