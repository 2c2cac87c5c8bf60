"""How each piece of a merged tensor comes about, once what it needs of the whole tensor is known."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from nestling.config.merge_methods import SPARSE, Recipe
from nestling.merging import sparse
from nestling.merging.inputs import Inputs
from nestling.merging.methods import coefficients
from nestling.merging.sources import Source
from nestling.merging.workers import Workers

# From where a piece of the flat tensor starts and stops to its elements, [stop - start] float64.
PieceMerge = Callable[[int, int], Tensor]
# Which changes of a model are kept there, [stop - start] bool, given these changes.
Keep = Callable[[int, int, Tensor], Tensor]


def plan(inputs: Inputs, recipe: Recipe, name: str, workers: Workers) -> PieceMerge:
    """How to merge a tensor whose gram has been measured."""
    weights = recipe.weights.of(name)
    if recipe.method in SPARSE:
        return partial(_sparse, inputs, recipe, name, weights, keeps(inputs, recipe, name, workers))
    gram = inputs.grams[name]
    solved = coefficients(recipe, gram if inputs.base is None else gram[:-1, :-1], weights)
    if inputs.base is None:
        return partial(combined, inputs.models, name, solved.tolist())
    return partial(_moved, inputs, name, solved.tolist())


def combined(models: Sequence[Source], name: str, factors: Sequence[float], start: int, stop: int) -> Tensor:
    """sum(c x); models with c = 0 are not read, so that one with c = 1 comes out bit for bit."""
    parts = [(factor, model.read(name, start, stop)) for factor, model in zip(factors, models, strict=True) if factor]
    if not parts:
        return torch.zeros(stop - start, dtype=torch.float64)
    (first, values), *others = parts
    found = values.to(torch.float64, copy=True)
    if first != 1:
        found *= first
    for factor, values in others:
        found.add_(values.double(), alpha=factor)
    return found


def _moved(inputs: Inputs, name: str, factors: Sequence[float], start: int, stop: int) -> Tensor:
    """b + sum(c d); what no model has changed stays as it is."""
    assert inputs.base is not None
    base = inputs.base.read(name, start, stop).double()
    found = base.clone()
    for factor, model in zip(factors, inputs.models, strict=True):
        if factor:
            found.add_(model.read(name, start, stop).double().sub_(base), alpha=factor)
    return found


def _sparse(
    inputs: Inputs, recipe: Recipe, name: str, weights: Sequence[float], keep: Sequence[Keep], start: int, stop: int
) -> Tensor:
    """TIES and DARE: changes that are not kept are none, and of the others those that agree are added or averaged."""
    changes = []
    for i, kept in enumerate(keep):
        change = changed(inputs, name, i, start, stop)
        changes.append(torch.where(kept(start, stop, change), change, 0))
    if recipe.method == "ties":
        found = sparse.agreed(changes, weights, mean=True)
    elif recipe.method == "dare_ties":
        found = sparse.agreed(changes, weights, mean=False) / recipe.density
    else:
        found = sparse.added(changes, weights) / recipe.density
    assert inputs.base is not None
    return inputs.base.read(name, start, stop).double() + recipe.scale * found


def changed(inputs: Inputs, name: str, model: int, start: int, stop: int) -> Tensor:
    """d of a model, [stop - start] float32."""
    assert inputs.base is not None
    return inputs.models[model].read(name, start, stop).float() - inputs.base.read(name, start, stop).float()


def keeps(inputs: Inputs, recipe: Recipe, name: str, workers: Workers) -> list[Keep]:
    """Which changes of each model are kept."""
    if recipe.density == 1:
        return [lambda start, stop, change: torch.tensor(True) for _ in inputs.models]
    if recipe.method == "ties":
        return [keep_largest(inputs, recipe, name, model, workers) for model in range(len(inputs.models))]
    return [partial(_by_chance, name, model, recipe) for model in range(len(inputs.models))]


def _by_chance(name: str, model: int, recipe: Recipe, start: int, stop: int, change: Tensor) -> Tensor:
    return sparse.kept_by_chance(name, model, start, stop, density=recipe.density, seed=recipe.seed)


def keep_largest(inputs: Inputs, recipe: Recipe, name: str, model: int, workers: Workers) -> Keep:
    """The share of a model's changes that is largest; of equal ones the first.

    The smallest that is kept is found by its bits, the upper ones in one pass over the tensor, the lower ones in
    another; a third counts those equal to it before each piece.
    """
    pieces = workers.pieces(inputs.specs[name].numel)
    if not pieces:
        return lambda start, stop, change: torch.tensor(True)

    def over(look: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        return workers.map(lambda piece: look(sparse.magnitude_bits(changed(inputs, name, model, *piece))), pieces)

    wanted = sparse.kept_count(inputs.specs[name].numel, recipe.density)
    high, wanted = sparse.largest(sparse.total(over(sparse.high_counts)), wanted)
    low, wanted = sparse.largest(sparse.total(over(lambda bits: sparse.low_counts(bits, high))), wanted)
    threshold = sparse.MagnitudeThreshold((high << sparse.LOW_BITS) + low, wanted)
    equal = [int(count) for count in over(lambda bits: (bits == threshold.bits).sum())]
    before = dict(zip((start for start, _ in pieces), accumulate(equal, initial=0), strict=False))
    return lambda start, stop, change: sparse.above_threshold(sparse.magnitude_bits(change), threshold, before[start])
