"""What a merge found out about its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nestling.config.merge_methods import Method, Recipe
from nestling.merging.inputs import Inputs, of_models
from nestling.merging.methods import PARALLEL, cosines, near_parallel, opposed


@dataclass(frozen=True)
class Likeness:
    """How alike two models point.

    Args:
        models: Which two.
        cosine: Of all their tensors as one vector.
        median: Over the tensors.
        least: Over the tensors.
        where: The tensor with the least.
    """

    models: tuple[str, str]
    cosine: float
    median: float
    least: float
    where: str

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.6f}, of a tensor {self.median:.6f} in the median and at least {self.least:.6f} "
            f"({self.where})"
        )


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and how alike it was.

    Args:
        method: How.
        models: Of what.
        base: The base of changes.
        tensors: Tensors that were merged.
        parameters: Numbers in them.
        copied: Tensors of integers, the same in all models.
        parallel: Tensors whose inputs are all parallel up to |cos| > 0.9995: slerp takes the straight line there, and
            karcher comes to the same within about 1e-4.
        norms: Of each model, all its tensors as one vector.
        likeness: Of each two models.
        change_norms: Of each model's difference from the base, in units of the base's norm; empty without a base.
        change_likeness: Of these differences.
        opposed: Tensors whose changes oppose each other on the whole: model stock leaves the base.
    """

    method: Method
    models: list[str]
    base: str | None
    tensors: int
    parameters: int
    copied: int
    parallel: int
    norms: list[float]
    likeness: list[Likeness]
    change_norms: list[float]
    change_likeness: list[Likeness]
    opposed: int

    def lines(self) -> list[str]:
        """For people to read; models bear numbers, since paths are long."""
        numbers = {model: number for number, model in enumerate(self.models, start=1)}

        def between(each: Likeness) -> str:
            return f"{numbers[each.models[0]]} and {numbers[each.models[1]]}: {each}"

        found = [
            f"{self.method} of {len(self.models)} models: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{self.copied} tensors of integers copied"
        ]
        found += [
            f"{numbers[model]}. {model}: norm {norm:.6g}" for model, norm in zip(numbers, self.norms, strict=True)
        ]
        found += [between(each) for each in self.likeness]
        found += [
            f"{number}: changed from {self.base} by {norm:.3g} of its norm"
            for number, norm in enumerate(self.change_norms, start=1)
        ]
        found += [f"changes of {between(each)}" for each in self.change_likeness]
        if self.method == "model_stock":
            found.append(f"{self.opposed} of {self.tensors} tensors were changed in opposite ways: the base's are left")
        if self.method in ("slerp", "karcher"):
            found.append(
                f"{self.parallel} of {self.tensors} tensors are near parallel (|cos| > {PARALLEL}): "
                + ("merged along the straight line" if self.method == "slerp" else "as good as the linear mean")
            )
        return found


def describe(inputs: Inputs, recipe: Recipe, names: Sequence[str]) -> MergeReport:
    """A report of the tensors whose grams have been measured."""
    measured = {name: inputs.grams[name] for name in names}
    of_x = measured if inputs.base is None else {name: of_models(gram) for name, gram in measured.items()}
    total = _total(of_x)
    changes = {} if inputs.base is None else {name: gram[:-1, :-1] for name, gram in measured.items()}
    base_norm = 1.0 if inputs.base is None else _total(measured)[-1, -1].sqrt().item()
    change_norms = [] if inputs.base is None else (_total(changes).diagonal().sqrt() / base_norm).tolist()
    return MergeReport(
        method=recipe.method,
        models=inputs.labels,
        base=inputs.base.label if inputs.base else None,
        tensors=len(measured),
        parameters=sum(inputs.specs[name].numel for name in measured),
        copied=len(inputs.buffers),
        parallel=sum(near_parallel(gram) for gram in of_x.values()),
        norms=total.diagonal().sqrt().tolist(),
        likeness=likenesses(inputs.labels, of_x),
        change_norms=change_norms,
        change_likeness=likenesses(inputs.labels, changes),
        opposed=sum(opposed(gram) for gram in changes.values()),
    )


def likenesses(labels: Sequence[str], grams: dict[str, Tensor]) -> list[Likeness]:
    """Of each two models; tensors that are 0 in one of them do not count."""
    if not grams:
        return []
    names, overall = list(grams), cosines(_total(grams))
    of_tensors = torch.stack([cosines(gram) for gram in grams.values()])  # [tensors, k, k]
    found = []
    for i, j in combinations(range(len(labels)), 2):
        each = of_tensors[:, i, j]
        least = int(each.nan_to_num(2).argmin())
        found.append(
            Likeness(
                (labels[i], labels[j]),
                float(overall[i, j]),
                float(each.nanmedian()),
                float(each[least]),
                names[least],
            )
        )
    return found


def _total(grams: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(grams.values())).sum(dim=0)
