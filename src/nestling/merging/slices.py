"""How each slice of a merged tensor is computed, once what depends on the whole tensor is known.

Notation as in `nestling.merging.inputs`: x_i a model's values, b the base's, d_i = x_i - b; c_i are coefficients.
"""

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

# Merges elements start to stop of a flat tensor: (start, stop) -> [stop - start] float64.
SliceMerge = Callable[[int, int], Tensor]
# Which changes of a model in a slice are kept: (start, stop, d [stop - start] float32) -> [stop - start] bool.
KeepMask = Callable[[int, int, Tensor], Tensor]


def plan(inputs: Inputs, recipe: Recipe, name: str, workers: Workers) -> SliceMerge:
    """How to merge the slices of a tensor, whose gram has been computed."""
    weights = recipe.weights.of(name)
    if recipe.method in SPARSE:
        return partial(_merge_sparse, inputs, recipe, name, weights, keep_masks(inputs, recipe, name, workers))
    gram = inputs.grams[name]
    solved = coefficients(recipe, gram if inputs.base is None else gram[:-1, :-1], weights)
    if inputs.base is None:
        return partial(_combine_models, inputs.models, name, solved.tolist())
    return partial(_combine_changes, inputs, name, solved.tolist())


def _combine_models(models: Sequence[Source], name: str, factors: Sequence[float], start: int, stop: int) -> Tensor:
    """sum(c x). Models with c = 0 are not read, so that a model with c = 1 beside them comes out bit for bit."""
    parts = [(factor, model.read(name, start, stop)) for factor, model in zip(factors, models, strict=True) if factor]
    if not parts:
        return torch.zeros(stop - start, dtype=torch.float64)
    (first, values), *others = parts
    merged = values.to(torch.float64, copy=True)
    if first != 1:
        merged *= first
    for factor, values in others:
        merged.add_(values, alpha=factor)  # in float64, without a copy in it
    return merged


def _combine_changes(inputs: Inputs, name: str, factors: Sequence[float], start: int, stop: int) -> Tensor:
    """b + sum(c d), computed from d so that what no model has changed comes out as the base's, bit for bit."""
    assert inputs.base is not None
    base = inputs.base.read(name, start, stop).double()
    merged = base.clone()
    for factor, model in zip(factors, inputs.models, strict=True):
        if factor:
            merged.add_(model.read(name, start, stop).double().sub_(base), alpha=factor)
    return merged


def _merge_sparse(
    inputs: Inputs, recipe: Recipe, name: str, weights: Sequence[float], keep: Sequence[KeepMask], start: int, stop: int
) -> Tensor:
    """TIES and DARE: changes that are not kept become 0, then all are combined as the method says."""
    changes = []
    for i, mask in enumerate(keep):
        change = _read_change(inputs, name, i, start, stop)
        changes.append(torch.where(mask(start, stop, change), change, 0))
    if recipe.method == "ties":
        combined = sparse.disjoint_merge(changes, weights, mean=True)
    elif recipe.method == "dare_ties":
        combined = sparse.disjoint_merge(changes, weights, mean=False) / recipe.density
    else:
        combined = sparse.weighted_sum(changes, weights) / recipe.density
    assert inputs.base is not None
    return inputs.base.read(name, start, stop).double() + recipe.scale * combined


def _read_change(inputs: Inputs, name: str, model: int, start: int, stop: int) -> Tensor:
    """d of a model, [stop - start] float32."""
    assert inputs.base is not None
    return inputs.models[model].read(name, start, stop).float() - inputs.base.read(name, start, stop).float()


def keep_masks(inputs: Inputs, recipe: Recipe, name: str, workers: Workers) -> list[KeepMask]:
    """Of each model, which changes of a tensor TIES or DARE keeps."""
    models = range(len(inputs.models))
    if recipe.density == 1:
        return [_keep_all for _ in models]
    if recipe.method == "ties":
        return [_keep_largest(inputs, recipe, name, model, workers) for model in models]
    return [partial(_keep_random, name, model, recipe) for model in models]


def _keep_all(start: int, stop: int, change: Tensor) -> Tensor:
    return torch.tensor(True)


def _keep_random(name: str, model: int, recipe: Recipe, start: int, stop: int, change: Tensor) -> Tensor:
    return sparse.random_mask(name, model, start, stop, density=recipe.density, seed=recipe.seed)


def _keep_largest(inputs: Inputs, recipe: Recipe, name: str, model: int, workers: Workers) -> KeepMask:
    """Keep the fraction `recipe.density` of a model's changes that is largest in magnitude; of equal ones the first.

    The magnitude of the smallest change that is kept is found by its float32 bits, without sorting: one pass over the
    tensor for the upper bits, another for the lower bits. A third pass counts the changes of exactly this magnitude
    before each slice, so that slices can be merged independently.
    """
    slices = workers.slices(inputs.specs[name].numel)
    if not slices:
        return _keep_all

    def on_each_slice(work: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        return workers.map(
            lambda bounds: work(sparse.magnitude_bits(_read_change(inputs, name, model, *bounds))), slices
        )

    count = sparse.kept_count(inputs.specs[name].numel, recipe.density)
    upper, count = sparse.bin_of_largest(sparse.total_counts(on_each_slice(sparse.upper_bit_counts)), count)
    lower_counts = on_each_slice(lambda bits: sparse.lower_bit_counts(bits, upper))
    lower, count = sparse.bin_of_largest(sparse.total_counts(lower_counts), count)
    threshold = sparse.MagnitudeThreshold((upper << sparse.LOWER_BITS) + lower, count)
    equal_counts = [int(equal) for equal in on_each_slice(lambda bits: (bits == threshold.bits).sum())]
    equal_before = dict(zip((start for start, _ in slices), accumulate(equal_counts, initial=0), strict=False))
    return lambda start, stop, change: sparse.largest_mask(
        sparse.magnitude_bits(change), threshold, equal_before[start]
    )
