"""The report of a merge: norms of its models, and cosines between them and between their changes to the base."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nestling.config.merge_methods import Method, Recipe
from nestling.merging.inputs import Inputs, gram_of_models
from nestling.merging.methods import PARALLEL_COSINE, cosines, near_parallel, opposed


@dataclass(frozen=True)
class PairCosine:
    """Cosines between two models, or between their changes. Its fields are keys in the results of scripts/merge.py.

    Args:
        models: Labels of the two.
        cosine: Cosine of all tensors as one vector.
        median: Median of the tensors' own cosines.
        least: Least of the tensors' own cosines.
        where: Name of the tensor with the least.
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
    """What was merged, and how similar the models are. Its fields are keys in the results of scripts/merge.py.

    Args:
        method: Method of merging.
        models: Labels of the models.
        base: Label of the base, for methods that merge changes to it.
        tensors: Number of tensors that were merged.
        parameters: Number of elements in them.
        copied: Number of tensors of integers, which are the same in all models and were copied.
        parallel: Number of tensors for which |cosine| > 0.9995 between all models: slerp takes the straight line there,
            and karcher gives the same within about 1e-4.
        norms: Norm of each model, all its tensors as one vector.
        likeness: Cosines of each pair of models.
        change_norms: Norm of each model's change to the base, divided by the base's norm; empty without a base.
        change_likeness: Cosines of each pair of changes; empty without a base.
        opposed: Number of tensors whose changes have a negative mean cosine: model stock leaves the base's values.
    """

    method: Method
    models: list[str]
    base: str | None
    tensors: int
    parameters: int
    copied: int
    parallel: int
    norms: list[float]
    likeness: list[PairCosine]
    change_norms: list[float]
    change_likeness: list[PairCosine]
    opposed: int

    def lines(self) -> list[str]:
        """The report as text, a line for each fact; models are referred to by number, since paths are long."""
        numbers = {model: number for number, model in enumerate(self.models, start=1)}

        def between(pair: PairCosine) -> str:
            return f"{numbers[pair.models[0]]} and {numbers[pair.models[1]]}: {pair}"

        lines = [
            f"{self.method} of {len(self.models)} models: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{self.copied} tensors of integers copied"
        ]
        lines += [
            f"{numbers[model]}. {model}: norm {norm:.6g}" for model, norm in zip(numbers, self.norms, strict=True)
        ]
        lines += [between(pair) for pair in self.likeness]
        lines += [
            f"{number}: changed from {self.base} by {norm:.3g} of its norm"
            for number, norm in enumerate(self.change_norms, start=1)
        ]
        lines += [f"changes of {between(pair)}" for pair in self.change_likeness]
        if self.method == "model_stock":
            lines.append(f"{self.opposed} of {self.tensors} tensors were changed in opposite ways: the base's are left")
        if self.method in ("slerp", "karcher"):
            lines.append(
                f"{self.parallel} of {self.tensors} tensors are near parallel (|cos| > {PARALLEL_COSINE}): "
                + ("merged along the straight line" if self.method == "slerp" else "as good as the linear mean")
            )
        return lines


def describe(inputs: Inputs, recipe: Recipe, names: Sequence[str]) -> MergeReport:
    """The report on some tensors, whose grams have been computed."""
    grams = {name: inputs.grams[name] for name in names}
    of_models = grams if inputs.base is None else {name: gram_of_models(gram) for name, gram in grams.items()}
    changes = {} if inputs.base is None else {name: gram[:-1, :-1] for name, gram in grams.items()}
    base_norm = 1.0 if inputs.base is None else _total(grams)[-1, -1].sqrt().item()
    change_norms = [] if inputs.base is None else (_total(changes).diagonal().sqrt() / base_norm).tolist()
    return MergeReport(
        method=recipe.method,
        models=inputs.labels,
        base=inputs.base.label if inputs.base else None,
        tensors=len(grams),
        parameters=sum(inputs.specs[name].numel for name in grams),
        copied=len(inputs.integer_tensors),
        parallel=sum(near_parallel(gram) for gram in of_models.values()),
        norms=_total(of_models).diagonal().sqrt().tolist(),
        likeness=pair_cosines(inputs.labels, of_models),
        change_norms=change_norms,
        change_likeness=pair_cosines(inputs.labels, changes),
        opposed=sum(opposed(gram) for gram in changes.values()),
    )


def pair_cosines(labels: Sequence[str], grams: dict[str, Tensor]) -> list[PairCosine]:
    """The cosines of each pair of models, from the grams [k, k] of their tensors; zero tensors are left out."""
    if not grams:
        return []
    names, of_all = list(grams), cosines(_total(grams))
    of_tensors = torch.stack([cosines(gram) for gram in grams.values()])  # [tensors, k, k]
    pairs = []
    for i, j in combinations(range(len(labels)), 2):
        of_pair = of_tensors[:, i, j]
        least = int(of_pair.nan_to_num(2).argmin())  # 2: never the least
        pairs.append(
            PairCosine(
                (labels[i], labels[j]),
                float(of_all[i, j]),
                float(of_pair.nanmedian()),
                float(of_pair[least]),
                names[least],
            )
        )
    return pairs


def _total(grams: dict[str, Tensor]) -> Tensor:
    """The gram of all tensors as one vector."""
    return torch.stack(list(grams.values())).sum(dim=0)
