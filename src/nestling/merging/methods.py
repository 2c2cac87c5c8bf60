"""Coefficients of each model in a merged tensor, for all methods whose result is a linear combination of the models.

Norms of the models' tensors and angles between them follow from the products x_i . x_j, and so do the coefficients. So
a tensor is read once to compute these products and once more to be combined, never as a whole.

Notation: k models, x_i a model's tensor as one flat vector, w_i its weight, b the base's, d_i = x_i - b its change.
A gram is [k, k] float64, x_i . x_j or d_i . d_j. Coefficients are [k] float64: each method's function returns them, and
its docstring has the formula of the merged tensor.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from nestling.config.merge_methods import Recipe

# With |cosine| above this, slerp takes the straight line, from which it hardly differs there; mergekit's threshold too.
PARALLEL_COSINE = 0.9995
# A vector with a smaller norm counts as zero, which has no direction.
MIN_NORM = 1e-8

# Each iteration of karcher multiplies its error by about the squared angle (in radians) between the models. Fine-tuned
# models, between which angles are small, need only a few iterations until steps are shorter than the tolerance.
MAX_ITERATIONS = 200
TOLERANCE = 1e-13


def coefficients(recipe: Recipe, gram: Tensor, weights: Sequence[float]) -> Tensor:
    """The coefficients of a tensor by the method of a recipe, [k].

    They are of x for linear, slerp and karcher. For task_arithmetic and model_stock they are of d: b is added to them.

    Args:
        recipe: Method and scale.
        gram: Of x or d, as above.
        weights: Of the models, for this tensor.
    """
    if recipe.method == "slerp":
        return slerp(gram, weights)
    if recipe.method == "karcher":
        return karcher(gram, weights)
    if recipe.method == "model_stock":
        return model_stock(gram)
    if recipe.method == "task_arithmetic":
        return task_arithmetic(weights, recipe.scale)
    assert recipe.method == "linear", recipe.method
    return linear(weights)


def linear(weights: Sequence[float]) -> Tensor:
    """sum(w x) / sum(w), a weighted mean: model soups, https://arxiv.org/abs/2203.05482."""
    values = torch.tensor(weights, dtype=torch.float64)
    return values / values.sum()


def task_arithmetic(weights: Sequence[float], scale: float) -> Tensor:
    """b + scale sum(w d); https://arxiv.org/abs/2212.04089."""
    return scale * torch.tensor(weights, dtype=torch.float64)


def slerp(gram: Tensor, weights: Sequence[float]) -> Tensor:
    """[sin((1-t) theta) x_1 + sin(t theta) x_2] / sin(theta), theta the angle between the two, t = w_2 / (w_1 + w_2).

    Along the straight line between them, with 1 - t and t, if |cos(theta)| > `PARALLEL_COSINE`. At t = 0 and t = 1 the
    coefficients are exactly 0 and 1.
    Ken Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    on_line = linear(weights)
    cosine = cosines(gram)[0, 1].nan_to_num(0)
    if cosine.abs() > PARALLEL_COSINE:
        return on_line
    t = on_line[1]
    angle = torch.arccos(cosine)
    return torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)


def karcher(gram: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean direction on the sphere (Karcher mean), times the weighted mean of the norms.

    With u_i = x_i / |x_i| and a = w / sum(w), start at m = unit(sum(a u)) and repeat until T vanishes
        T = sum(a_i theta_i / sin(theta_i) (u_i - cos(theta_i) m)),  cos(theta_i) = u_i . m
        m <- cos|T| m + sin|T| T / |T|
    It does not depend on the order of the models, and for two of equal norm it is slerp. Where the models cancel out,
    so that no direction is nearest to all, it is the linear mean. Models whose norm or weight is 0 do not count for the
    direction. https://arxiv.org/abs/2603.04972
    """
    linear_weights = linear(weights)
    norms = gram.diagonal().sqrt()
    counted = (norms > MIN_NORM) & (linear_weights > 0)
    if not counted.any():
        return linear_weights
    a = linear_weights[counted] / linear_weights[counted].sum()
    cosine = cosines(gram)[counted][:, counted]
    if norm_of(a, cosine) < MIN_NORM:
        return linear_weights
    result = torch.zeros_like(linear_weights)
    result[counted] = (linear_weights @ norms) * mean_direction(a, cosine) / norms[counted]
    return result


def mean_direction(a: Tensor, cosine: Tensor) -> Tensor:
    """m of `karcher` as coefficients of the unit vectors u, [k].

    Args:
        a: Weights that sum to 1, [k].
        cosine: u_i . u_j, [k, k].
    """
    mean = a / norm_of(a, cosine)
    for _ in range(MAX_ITERATIONS):
        to_mean = (cosine @ mean).clamp(-1, 1)  # cos(theta_i)
        factors = a * angle_over_sine(to_mean)
        tangent = factors - (factors @ to_mean) * mean
        step = norm_of(tangent, cosine)
        if step < TOLERANCE:
            break
        mean = torch.cos(step) * mean + torch.sin(step) / step * tangent
        mean = mean / norm_of(mean, cosine)
    return mean


def model_stock(gram: Tensor) -> Tensor:
    """t mean(x) + (1 - t) b, t = k c / (1 + (k - 1) c), c the mean cosine between changes.

    Changes at right angles, c = 0, leave the base as it is. So do changes with c < 0, for which the formula is not
    meant: it would move away from the models. https://arxiv.org/abs/2403.19522
    """
    k = len(gram)
    c = mean_cosine(gram).clamp_min(0)
    t = k * c / (1 + (k - 1) * c)
    return t.repeat(k) / k


def mean_cosine(gram: Tensor) -> Tensor:
    """The mean of the cosines of all pairs of vectors, []; those with a zero vector count as 0."""
    cosine = cosines(gram).nan_to_num(0)
    return torch.stack([cosine[i, j] for i, j in combinations(range(len(gram)), 2)]).mean()


def opposed(gram: Tensor) -> bool:
    """Whether there is more than one change, and the mean cosine of all pairs is negative."""
    return len(gram) > 1 and bool(mean_cosine(gram) < 0)


def cosines(gram: Tensor) -> Tensor:
    """The cosine of each pair of vectors, [k, k], between -1 and 1; nan with a zero vector."""
    norms = gram.diagonal().sqrt()
    norms = torch.where(norms > MIN_NORM, norms, torch.nan)
    return (gram / norms / norms[:, None]).clamp(-1, 1)


def near_parallel(gram: Tensor) -> bool:
    """Whether |cosine| > `PARALLEL_COSINE` for all pairs; zero vectors count as parallel to all."""
    return bool((cosines(gram).nan_to_num(1).abs() > PARALLEL_COSINE).all())


def norm_of(coefficients: Tensor, cosine: Tensor) -> Tensor:
    """The norm, [], of a linear combination of unit vectors whose cosines are [k, k]."""
    return (coefficients @ cosine @ coefficients).clamp_min(0).sqrt()


def angle_over_sine(cosine: Tensor) -> Tensor:
    """theta / sin(theta), element by element, from cos(theta); 1 at theta = 0 and at theta = pi."""
    sine = (1 - cosine.square()).clamp_min(0).sqrt()
    return torch.where(sine > MIN_NORM, torch.arccos(cosine) / sine.clamp_min(MIN_NORM), 1.0)
