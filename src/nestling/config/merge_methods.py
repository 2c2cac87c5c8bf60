"""What a merge is to do; nothing here imports torch, so that settings can name it."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Method = Literal[
    "linear", "slerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties", "model_stock"
]  # formulas and sources: docs/merging.md

WITH_BASE: Collection[Method] = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "model_stock")
MEANS: Collection[Method] = ("linear", "slerp", "karcher")  # divide by the sum of the weights
SPARSE: Collection[Method] = ("ties", "dare_linear", "dare_ties")  # keep a share of the changes


@dataclass(frozen=True)
class Weights:
    """How much each model counts.

    Args:
        models: One number a model, in their order.
        patterns: Regular expressions, found anywhere in a tensor's name, and the weights there; the first that is found
            counts.
    """

    models: tuple[float, ...]
    patterns: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        for pattern, weights in self.every():
            if len(weights) != len(self.models):
                raise ValueError(f"weights{pattern}: {len(weights)} numbers, expected {len(self.models)}, one a model")
            if not all(math.isfinite(each) for each in weights):
                raise ValueError(f"weights{pattern}: {list(weights)}, expected finite numbers")
        for pattern, _ in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"weights of {pattern!r}: not a regular expression: {error}") from error

    def every(self) -> list[tuple[str, tuple[float, ...]]]:
        """All that are given, each with what names it in an error."""
        return [("", self.models), *((f" of {pattern!r}", weights) for pattern, weights in self.patterns)]

    def of(self, name: str) -> tuple[float, ...]:
        """Those of a tensor."""
        return next((weights for pattern, weights in self.patterns if re.search(pattern, name)), self.models)

    def require_found(self, names: Collection[str]) -> None:
        """Raise ValueError for a pattern that no tensor's name has."""
        for pattern, _ in self.patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(
                    f"weights of {pattern!r}: no tensor has such a name; names are like {next(iter(names), '(none)')}"
                )


@dataclass(frozen=True)
class Recipe:
    """A way to merge some models.

    Args:
        method: How; docs/merging.md has the formulas.
        weights: Of the models.
        scale: Of the change to the base, lambda, for task arithmetic, TIES and DARE.
        density: Share of each model's changes that TIES and DARE keep.
        seed: Of DARE's masks.

    Raises:
        ValueError: Weights that the method cannot divide by, or a setting that it does not have.
    """

    method: Method
    weights: Weights
    scale: float = 1.0
    density: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for pattern, weights in self.weights.every():
            self._require_usable(f"weights{pattern}", weights)
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density:g}, expected a share: 0 < density <= 1")
        if self.density < 1 and self.method not in SPARSE:
            raise ValueError(f"density is of {', '.join(SPARSE)}; {self.method} keeps all changes")
        if self.scale != 1 and (self.method in MEANS or self.method == "model_stock"):
            raise ValueError(f"scale is of task arithmetic, TIES and DARE; {self.method} has none")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}, expected a finite number")

    def _require_usable(self, what: str, weights: tuple[float, ...]) -> None:
        if self.method in MEANS and not sum(weights) > 0:
            raise ValueError(f"{what}: {list(weights)}, expected a sum above 0, by which {self.method} divides")
        if self.method == "karcher" and min(weights) < 0:
            raise ValueError(f"{what}: {list(weights)}, expected 0 or more: karcher is a mean")
        if self.method == "model_stock" and len(set(weights)) > 1:
            raise ValueError(f"{what}: {list(weights)}; model_stock finds its own, give all models the same")

    def require_models(self, models: int, *, base: bool) -> None:
        """Raise ValueError unless the method takes so many models, with or without a base."""
        if len(self.weights.models) != models:
            raise ValueError(f"weights: {len(self.weights.models)} numbers for {models} models")
        if base != (self.method in WITH_BASE):
            wants = "needs a base, the model that all were trained from" if not base else "takes no base"
            raise ValueError(f"{self.method} {wants}; methods with a base: {', '.join(WITH_BASE)}")
        least = {"slerp": 2, "model_stock": 2}.get(self.method, 1)
        if models < least or (self.method == "slerp" and models > 2):
            more = "; for more, karcher does not depend on their order" if models > 2 else ""
            raise ValueError(f"{self.method} of {models} models, expected {least}{more}")


def equal_weights(models: int) -> Weights:
    """The same for every model, 1: a mean where the method divides by their sum."""
    return Weights((1.0,) * models)


def default_method(models: int) -> Method:
    """slerp of two models; karcher, which does not depend on their order, of more."""
    return "slerp" if models == 2 else "karcher"
