"""Methods that are linear combinations, against their formulas on flat vectors in float64."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from merging.in_memory import MemoryTensors, equal_recipe, family, merged, random_tensors, recipe
from nestling.config.merge_methods import Recipe
from nestling.merging.inputs import Inputs
from nestling.merging.methods import PARALLEL_COSINE, coefficients, karcher, opposed, slerp

Formula = Callable[[list[Tensor], Sequence[float]], Tensor]


def by_tensor(models: Sequence[MemoryTensors], weights: Sequence[float], formula: Formula) -> dict[str, Tensor]:
    return {
        name: formula([model.tensors[name].double().flatten() for model in models], weights).view(tensor.shape)
        for name, tensor in models[0].tensors.items()
    }


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-11, atol=1e-13, msg=name)


def mean(x: list[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(x[0])
    for weight, each in zip(weights, x, strict=True):
        total += weight * each
    return total / sum(weights)


def arc(x: list[Tensor], weights: Sequence[float]) -> Tensor:
    a, b = x
    t = weights[1] / sum(weights)
    cosine = float(a @ b / (a.norm() * b.norm()))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def sphere_mean(x: list[Tensor], weights: Sequence[float]) -> Tensor:
    """The Karcher mean by iteration on the vectors themselves, until it no longer changes."""
    fractions = [weight / sum(weights) for weight in weights]
    units = [each / each.norm() for each in x]
    direction = mean(units, fractions)
    direction /= direction.norm()
    for _ in range(500):
        tangent = torch.zeros_like(direction)
        for fraction, unit in zip(fractions, units, strict=True):
            angle = 2 * math.asin(min(1.0, float((unit - direction).norm()) / 2))
            if angle > 1e-12:
                tangent += fraction * angle / math.sin(angle) * (unit - math.cos(angle) * direction)
        size = float(tangent.norm())
        if size < 1e-15:
            break
        direction = math.cos(size) * direction + math.sin(size) / size * tangent
        direction /= direction.norm()
    return sum(fraction * float(each.norm()) for fraction, each in zip(fractions, x, strict=True)) * direction


def stock(x: list[Tensor], base: Tensor) -> Tensor:
    changes = [each - base for each in x]
    pairs = [(a, b) for i, a in enumerate(changes) for b in changes[i + 1 :]]
    cosine = sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / len(pairs)
    t = len(x) * cosine / (1 + (len(x) - 1) * cosine)
    return t * mean(x, [1] * len(x)) + (1 - t) * base


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 0, 3)])
@pytest.mark.parametrize(("method", "formula"), [("linear", mean), ("karcher", sphere_mean)])
def test_means_of_three(method: str, formula: Formula, weights: tuple[float, ...]) -> None:
    models = [MemoryTensors(str(seed), random_tensors(seed)) for seed in (1, 2, 3)]  # nearly at right angles
    actual = merged(Inputs.of(models), recipe(method, *weights))  # type: ignore[arg-type]
    weighted = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    kept, kept_weights = zip(*weighted, strict=True)
    # Vectors of a single element are parallel or opposite; tests below have the Karcher mean of those.
    expected = by_tensor(kept, kept_weights, formula)
    for each in (actual, expected):
        del each["norm.weight"]
    assert_all_close(actual, expected)


@pytest.mark.parametrize("weights", [(1, 1), (0.9, 0.1), (1, 3)])
def test_slerp(weights: tuple[float, float]) -> None:
    _, models = family(2)
    assert_all_close(merged(Inputs.of(models), recipe("slerp", *weights)), by_tensor(models, weights, arc))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("method", ["slerp", "karcher", "linear"])
@pytest.mark.parametrize("whole", [0, 1])
def test_all_weight_on_one_model_gives_that_model_bit_for_bit(method: str, whole: int, dtype: torch.dtype) -> None:
    models = [MemoryTensors(str(seed), random_tensors(seed, dtype)) for seed in (1, 2)]
    special = torch.tensor([-0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny / 2, 1e-3], dtype=dtype)
    for model in models:
        model.tensors["layers.1.weight"].view(-1)[:4] = special
    weights = [1.0, 0.0] if whole == 0 else [0.0, 2.5]
    actual = merged(Inputs.of(models), recipe(method, *weights))  # type: ignore[arg-type]
    same_size = torch.int16 if dtype.itemsize == 2 else torch.int32
    for name, expected in models[whole].tensors.items():
        assert torch.equal(actual[name].to(dtype).view(same_size), expected.view(same_size)), name


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("linear", {}),
        ("slerp", {}),
        ("karcher", {}),
        ("model_stock", {}),
        ("task_arithmetic", {"scale": 0.7}),
        ("ties", {"density": 0.3}),
        ("dare_ties", {"density": 0.3}),
        ("dare_linear", {"density": 0.3}),
    ],
)
def test_what_all_models_share_stays_as_it_is(method: str, settings: dict[str, float]) -> None:
    base, (one, other) = family(2)
    one.tensors["layers.1.weight"] = other.tensors["layers.1.weight"] = base.tensors["layers.1.weight"]
    means = method in ("linear", "slerp", "karcher")
    how = recipe(method, 0.3, 0.7, **settings) if method != "model_stock" else equal_recipe("model_stock", 2)  # type: ignore[arg-type]
    actual = merged(Inputs.of([one, other], None if means else base), how)["layers.1.weight"]
    assert torch.equal(actual.float(), base.tensors["layers.1.weight"])


def test_karcher_does_not_depend_on_the_order() -> None:
    models = [MemoryTensors(str(seed), random_tensors(seed, torch.bfloat16)) for seed in range(4)]
    weights = (0.1, 0.4, 0.2, 0.3)
    actual = merged(Inputs.of(models), recipe("karcher", *weights))
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        again = merged(Inputs.of([models[i] for i in order]), recipe("karcher", *(weights[i] for i in order)))
        for name in actual:
            torch.testing.assert_close(again[name], actual[name], rtol=1e-14, atol=1e-15)
            assert torch.equal(again[name].bfloat16(), actual[name].bfloat16())


def test_karcher_of_two_is_slerp_up_to_the_norm() -> None:
    x = torch.tensor([[3.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    for t in (0.2, 0.5, 0.9):
        on_sphere = karcher(x @ x.T, [1 - t, t]) @ x
        units = x / x.norm(dim=1, keepdim=True)
        along_arc = slerp(units @ units.T, [1 - t, t]) @ units
        torch.testing.assert_close(on_sphere / on_sphere.norm(), along_arc, rtol=1e-13, atol=0)
        norm = (1 - t) * 3 + t * math.sqrt(8)
        assert float(on_sphere.norm()) == pytest.approx(norm, rel=1e-13)


def test_karcher_keeps_norms_that_the_linear_mean_shrinks() -> None:
    x = 5 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close((karcher(x @ x.T, [1, 1, 1]) @ x).norm(), torch.tensor(5.0, dtype=torch.float64))
    assert float(coefficients(equal_recipe("linear", 3), x @ x.T, [1, 1, 1]).norm()) * 5 == pytest.approx(5 / 3**0.5)


def test_karcher_where_vectors_cancel_out_or_have_no_length() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert karcher(x @ x.T, [1, 1]).tolist() == [0.5, 0.5]
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(karcher(x @ x.T, [1, 3]) @ x, x[0] / 4)  # direction of the one, a quarter of its norm
    assert karcher(torch.zeros(2, 2, dtype=torch.float64), [1, 3]).tolist() == [0.25, 0.75]


def test_slerp_is_linear_near_parallel_and_without_length() -> None:
    for cosine in (PARALLEL_COSINE + 1e-6, -PARALLEL_COSINE - 1e-6):
        gram = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(slerp(gram, [0.3, 0.7]), torch.tensor([0.3, 0.7], dtype=torch.float64))
    gram = torch.tensor([[1.0, PARALLEL_COSINE - 1e-6], [PARALLEL_COSINE - 1e-6, 1.0]], dtype=torch.float64)
    assert float(slerp(gram, [0.5, 0.5]).sum()) > 1 + 1e-5
    alone = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(slerp(alone, [1, 1])[0], torch.tensor(0.5, dtype=torch.float64).sqrt())


def test_task_arithmetic() -> None:
    base, models = family(3)
    actual = merged(Inputs.of(models, base), recipe("task_arithmetic", 0.5, -0.2, 1.0, scale=0.8))
    expected = {
        name: b.double()
        + 0.8 * sum(w * (m.tensors[name].double() - b.double()) for w, m in zip((0.5, -0.2, 1.0), models, strict=True))
        for name, b in base.tensors.items()
    }
    assert_all_close(actual, expected)  # type: ignore[arg-type]


def test_model_stock() -> None:
    base = MemoryTensors("base", random_tensors(0))
    shared = random_tensors(9)
    models = []
    for seed in (1, 2, 3):  # changes that have a part in common
        own = random_tensors(seed)
        models.append(
            MemoryTensors(str(seed), {n: b + 0.3 * shared[n] + 0.2 * own[n] for n, b in base.tensors.items()})
        )
    actual = merged(Inputs.of(models, base), equal_recipe("model_stock", 3))
    del actual["norm.weight"], base.tensors["norm.weight"]  # its changes oppose each other: see below
    expected = {
        name: stock([m.tensors[name].double().flatten() for m in models], b.double().flatten()).view(b.shape)
        for name, b in base.tensors.items()
    }
    assert_all_close(actual, expected)


def test_model_stock_of_opposing_changes_is_the_base() -> None:
    base = MemoryTensors("base", random_tensors(0))
    models = [MemoryTensors(str(s), {n: b + s * 0.1 for n, b in base.tensors.items()}) for s in (-1, 1)]
    actual = merged(Inputs.of(models, base), equal_recipe("model_stock", 2))
    assert all(torch.equal(actual[name].float(), base.tensors[name]) for name in actual)
    assert opposed(torch.tensor([[1.0, -0.1], [-0.1, 1.0]], dtype=torch.float64))
    assert not opposed(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe("linear", 1, -1), r"expected a sum above 0, by which linear divides"),
        (lambda: recipe("karcher", 2, -1), "karcher is a mean"),
        (lambda: recipe("model_stock", 2, 1), "model_stock finds its own"),
        (lambda: recipe("linear", 1, math.nan), "expected finite numbers"),
        (lambda: recipe("slerp", 1, 1, density=0.5), "slerp keeps all changes"),
        (lambda: recipe("ties", 1, 1, density=0), "expected a share"),
        (lambda: recipe("karcher", 1, 1, scale=2), "karcher has none"),
        (lambda: recipe("ties", 1, 1, scale=math.inf), "expected a finite number"),
    ],
)
def test_recipes_that_cannot_be_followed(make: Callable[[], Recipe], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_are_refused_for_models_that_they_are_not_for() -> None:
    for how, models, base, message in [
        (recipe("linear", 1, 1), 3, False, "2 numbers for 3 models"),
        (recipe("slerp", 1, 1, 1), 3, False, "slerp of 3 models, expected 2; for more, karcher"),
        (recipe("slerp", 1), 1, False, "slerp of 1 models, expected 2"),
        (recipe("model_stock", 1), 1, True, "expected 2"),
        (recipe("ties", 1, 1), 2, False, "ties needs a base"),
        (recipe("linear", 1, 1), 2, True, "linear takes no base"),
    ]:
        with pytest.raises(ValueError, match=message):
            how.require_models(models, base=base)
