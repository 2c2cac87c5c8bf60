"""How much of each model a merged tensor takes: for all methods whose result is a linear combination of the inputs.

Such a combination depends on the inputs through their products alone. So a tensor is read once for the matrix of
products, the coefficients are solved in float64, and it is read once more to be added up.

Shapes: k models, x_i a model's tensor as one long vector, w_i its weight, b the base, d_i = x_i - b its change.
A gram is [k, k] float64, x_i . x_j or d_i . d_j; coefficients are [k] float64.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from nestling.config.merge_methods import Recipe

# Above this cosine an angle says nothing that the straight line does not.
PARALLEL = 0.9995
# A shorter vector has no direction.
SHORT = 1e-8

# karcher converges by a factor of about the squared angle an iteration; these are never reached by fine-tuned models.
ITERATIONS = 200
CONVERGED = 1e-13


def coefficients(recipe: Recipe, gram: Tensor, weights: Sequence[float]) -> Tensor:
    """What `recipe.method` multiplies the models by; or their changes, to be added to the base.

    Args:
        recipe: linear, slerp and karcher give coefficients of x; task_arithmetic and model_stock of d.
        gram: Of the same.
        weights: Of this tensor.
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
    """sum(w x) / sum(w); model soups, https://arxiv.org/abs/2203.05482."""
    given = torch.tensor(weights, dtype=torch.float64)
    return given / given.sum()


def task_arithmetic(weights: Sequence[float], scale: float) -> Tensor:
    """b + scale sum(w d); https://arxiv.org/abs/2212.04089."""
    return scale * torch.tensor(weights, dtype=torch.float64)


def slerp(gram: Tensor, weights: Sequence[float]) -> Tensor:
    """[sin((1-t) theta) x_1 + sin(t theta) x_2] / sin(theta), theta the angle between the two, t = w_2 / (w_1 + w_2).

    Along the line between them, 1 - t and t, if |cos(theta)| > `PARALLEL`. At t = 0 and 1 the coefficients are 0 and 1.
    Ken Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    straight = linear(weights)
    cosine = cosines(gram)[0, 1].nan_to_num(0)
    if cosine.abs() > PARALLEL:
        return straight
    t = straight[1]
    angle = torch.arccos(cosine)
    return torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)


def karcher(gram: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean on the sphere, times the weighted mean of the norms; slerp for two of equal norm.

    With u_i = x_i / |x_i| and a = w / sum(w), start at m = unit(sum(a u)) and repeat until T vanishes
        T = sum(a_i theta_i / sin(theta_i) (u_i - cos(theta_i) m)),  cos(theta_i) = u_i . m
        m <- cos|T| m + sin|T| T / |T|
    It does not depend on the order of the models. Where they cancel out, so that no mean is nearest to all, it is the
    linear one. Models without length or weight have no part in the direction. https://arxiv.org/abs/2603.04972
    """
    straight = linear(weights)
    norms = gram.diagonal().sqrt()
    taking_part = (norms > SHORT) & (straight > 0)
    if not taking_part.any():
        return straight
    share = straight[taking_part] / straight[taking_part].sum()
    cosine = cosines(gram)[taking_part][:, taking_part]
    mean = share / length(share, cosine).clamp_min(SHORT)  # m as coefficients of u
    if length(share, cosine) < SHORT:
        return straight
    for _ in range(ITERATIONS):
        towards = (cosine @ mean).clamp(-1, 1)
        pull = share * angle_over_sine(towards)
        tangent = pull - (pull @ towards) * mean
        size = length(tangent, cosine)
        if size < CONVERGED:
            break
        mean = torch.cos(size) * mean + torch.sin(size) / size * tangent
        mean = mean / length(mean, cosine)
    found = torch.zeros_like(straight)
    found[taking_part] = (straight @ norms) * mean / norms[taking_part]
    return found


def model_stock(gram: Tensor) -> Tensor:
    """t mean(x) + (1 - t) b, t = k c / (1 + (k - 1) c), c the mean cosine between changes.

    Changes that have nothing in common, c = 0, leave the base; so do those that oppose each other, for which the
    formula is not meant. https://arxiv.org/abs/2403.19522
    """
    count = len(gram)
    mean = mean_cosine(gram).clamp_min(0)
    t = count * mean / (1 + (count - 1) * mean)
    return t.repeat(count) / count


def mean_cosine(gram: Tensor) -> Tensor:
    """Over each two vectors; 0 for a vector that has no direction."""
    cosine = cosines(gram).nan_to_num(0)
    return torch.stack([cosine[i, j] for i, j in combinations(range(len(gram)), 2)]).mean()


def opposed(gram: Tensor) -> bool:
    """Whether vectors oppose each other on the whole."""
    return len(gram) > 1 and bool(mean_cosine(gram) < 0)


def cosines(gram: Tensor) -> Tensor:
    """[k, k] within -1 and 1; nan with a vector that has no direction."""
    norms = gram.diagonal().sqrt()
    norms = torch.where(norms > SHORT, norms, torch.nan)
    return (gram / norms / norms[:, None]).clamp(-1, 1)


def near_parallel(gram: Tensor) -> bool:
    """Whether all models point the same way, or the opposite, up to |cos| > `PARALLEL`."""
    return bool((cosines(gram).nan_to_num(1).abs() > PARALLEL).all())


def length(vector: Tensor, cosine: Tensor) -> Tensor:
    """Of a vector in coefficients of unit vectors between which the cosines are [k, k]."""
    return (vector @ cosine @ vector).clamp_min(0).sqrt()


def angle_over_sine(cosine: Tensor) -> Tensor:
    """theta / sin(theta) of cos(theta); 1 at theta = 0."""
    sine = (1 - cosine.square()).clamp_min(0).sqrt()
    return torch.where(sine > SHORT, torch.arccos(cosine) / sine.clamp_min(SHORT), 1.0)
