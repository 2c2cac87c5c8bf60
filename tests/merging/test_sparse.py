"""TIES and DARE against plain loops over whole tensors."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from merging.in_memory import MemoryTensors, family, merged, near, random_tensors, recipe
from nestling.merging.inputs import Inputs
from nestling.merging.sparse import (
    MagnitudeThreshold,
    bin_of_largest,
    kept_count,
    largest_mask,
    magnitude_bits,
    random_mask,
)
from nestling.merging.workers import BLOCK_SIZE


def largest_first(change: Tensor, density: float) -> Tensor:
    """Mask of the largest elements of a flat tensor; of equal ones the first."""
    order = change.abs().argsort(descending=True, stable=True)
    mask = torch.zeros(len(change), dtype=torch.bool)
    mask[order[: max(1, int(density * len(change)))]] = True
    return mask


def elected(changes: Tensor, weights: Sequence[float], *, divide: bool) -> Tensor:
    """TIES's elected sum of changes, [k, n] float64, element by element; with `divide` the mean."""
    total = torch.zeros(changes.shape[1], dtype=torch.float64)
    for i, column in enumerate((changes * torch.tensor(weights, dtype=torch.float64)[:, None]).T.tolist()):
        sign = 1 if math.fsum(column) >= 0 else -1
        agreeing = [(moved, weight) for moved, weight in zip(column, weights, strict=True) if moved * sign > 0]
        divisor = sum(weight for _, weight in agreeing) if divide else 1
        total[i] = sum(moved for moved, _ in agreeing) / (divisor or 1)
    return total


def changes_of(base: MemoryTensors, models: Sequence[MemoryTensors], name: str) -> Tensor:
    """The models' changes to the base in one tensor, [k, n] float32."""
    return torch.stack([(m.tensors[name].float() - base.tensors[name].float()).flatten() for m in models])


def one_change(change: Tensor) -> Inputs:
    """A base of zeros and a model whose change to it is given, of one tensor "a"."""
    return Inputs.of([MemoryTensors("model", {"a": change})], MemoryTensors("base", {"a": torch.zeros_like(change)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.75])
def test_ties(density: float, dtype: torch.dtype) -> None:
    base, models = family(3, dtype=dtype)
    weights = (0.5, 1.0, 0.8)
    actual = merged(Inputs.of(models, base), recipe("ties", *weights, density=density, scale=1.2))
    for name in ("layers.0.weight", "layers.0.bias", "layers.1.weight", "norm.weight"):
        changes = changes_of(base, models, name)
        kept = torch.stack([change * largest_first(change, density) for change in changes]).double()
        expected = base.tensors[name].double().flatten() + 1.2 * elected(kept, weights, divide=True)
        torch.testing.assert_close(actual[name].flatten(), expected, rtol=1e-13, atol=1e-14)


def test_the_largest_are_those_of_topk_for_any_slices() -> None:
    change = torch.randn(3 * BLOCK_SIZE + 1000)
    wanted = kept_count(len(change), 0.1)
    inputs = one_change(change)
    for blocks in (1, 2, 8):
        actual = merged(inputs, recipe("ties", 1, density=0.1), slice_size=blocks * BLOCK_SIZE)["a"]
        assert int((actual != 0).sum()) == wanted
        expected = change.abs().topk(wanted).values.sort().values
        assert torch.equal(actual[actual != 0].abs().float().sort().values, expected)


def test_of_equal_changes_the_first_are_kept_for_any_slices() -> None:
    change = torch.randint(-3, 4, (3 * BLOCK_SIZE + 1000,)).float() / 8
    inputs = one_change(change)
    for density in (0.1, 0.5, 0.95):
        expected = change * largest_first(change, density)
        for blocks in (1, 8):
            actual = merged(inputs, recipe("ties", 1, density=density), slice_size=blocks * BLOCK_SIZE)["a"]
            assert torch.equal(actual.float(), expected)


def test_threshold_of_the_largest_elements() -> None:
    counts = torch.tensor([5, 0, 2, 0, 1, 0])
    assert [bin_of_largest(counts, wanted) for wanted in (1, 2, 3, 4, 8)] == [(4, 1), (2, 1), (2, 2), (0, 1), (0, 5)]
    bits = magnitude_bits(torch.tensor([1.0, -2.0, 1.0, 0.5, -1.0]))
    assert (bits.argsort(stable=True) == torch.tensor([3, 0, 2, 4, 1])).all()
    one = MagnitudeThreshold(int(bits[0]), 2)
    assert largest_mask(bits, one, 0).tolist() == [True, True, True, False, False]
    assert largest_mask(bits, one, 1).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare(method: str) -> None:
    base, models = family(2)
    how = recipe(method, 0.5, 1.5, density=0.3, scale=0.9, seed=7)  # type: ignore[arg-type]
    actual = merged(Inputs.of(models, base), how)
    for name in ("layers.0.weight", "layers.1.weight"):
        changes = changes_of(base, models, name)
        masks = torch.stack([random_mask(name, i, 0, changes.shape[1], density=0.3, seed=7) for i in range(2)])
        scaled = changes.double() * masks / 0.3
        added = (
            0.5 * scaled[0] + 1.5 * scaled[1] if method == "dare_linear" else elected(scaled, (0.5, 1.5), divide=False)
        )
        expected = base.tensors[name].double().flatten() + 0.9 * added
        torch.testing.assert_close(actual[name].flatten(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_masks_have_their_density_and_are_independent(density: float) -> None:
    count = 200_000
    made = [
        random_mask(name, model, 0, count, density=density, seed=seed)
        for name, model, seed in (("a", 0, 0), ("a", 1, 0), ("b", 0, 0), ("a", 0, 1))
    ]
    spread = math.sqrt(density * (1 - density) / count)
    for i, mask in enumerate(made):
        assert abs(float(mask.double().mean()) - density) < 4 * spread
        for other in made[:i]:
            both = density**2
            assert abs(float((mask & other).double().mean()) - both) < 4 * math.sqrt(both * (1 - both) / count)


def test_a_mask_does_not_depend_on_where_a_slice_begins() -> None:
    whole = random_mask("a", 1, 0, 1000, density=0.5, seed=3)
    for start, stop in ((0, 8), (8, 777), (504, 1000)):
        assert torch.equal(random_mask("a", 1, start, stop, density=0.5, seed=3), whole[start:stop])
    # The first values of a seed, so that a change of numpy's generator does not go unnoticed.
    assert whole[:16].int().tolist() == [1, 0, 0, 1, 0, 1] + [0] * 10


def test_dare_gives_the_changes_back_on_average() -> None:
    base = MemoryTensors("base", random_tensors(0))
    model = MemoryTensors("model", near(base.tensors, seed=1))
    inputs = Inputs.of([model], base)
    runs = [merged(inputs, recipe("dare_linear", 1, density=0.5, seed=seed))["layers.1.weight"] for seed in range(64)]
    difference = torch.stack(runs).mean(dim=0) - model.tensors["layers.1.weight"].double()
    change = model.tensors["layers.1.weight"] - base.tensors["layers.1.weight"]
    assert float(difference.norm() / change.double().norm()) == pytest.approx(1 / 8, rel=0.02)  # sqrt((1-p)/p / 64)
