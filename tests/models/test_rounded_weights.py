"""Rounding to a shorter type: to the nearest number, or to one of the two beside a value at random."""

from pathlib import Path

import pytest
import torch

from nestling.models.embedder import Embedder
from nestling.models.merged_weights import MergedWeights
from nestling.models.rounded_weights import RoundedWeights, neighbour, round_stochastically
from tiny import tiny_qwen3
from trained import with_lora

DTYPES = [torch.bfloat16, torch.float16]
SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-3, -1e-3, 6e-8, -6e-8, 3e38, -3e38, float("inf"), float("nan")])


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_those_of_the_type(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    ordered = every[every.isfinite()].unique()  # [numbers of the type], ascending, -0 and 0 as one
    assert torch.equal(neighbour(ordered[:-1], torch.ones(len(ordered) - 1)), ordered[1:])
    assert torch.equal(neighbour(ordered[1:], -torch.ones(len(ordered) - 1)), ordered[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_a_rounding_is_the_value(dtype: torch.dtype) -> None:
    for value in (0.02001, -0.02001, 1.3, 3e-8, -0.7501):
        tensor = torch.full((200_000,), value)
        rounded = round_stochastically(tensor, dtype, seed=1).double()
        beside = rounded.unique()
        assert len(beside) == 2
        assert beside[0] <= tensor[0] <= beside[1]
        step = (beside[1] - beside[0]).item()
        assert abs(rounded.mean().item() - tensor[0].double().item()) < 5 * step / 2 / len(tensor) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_the_type_stay_and_none_leaves_its_range(dtype: torch.dtype) -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(round_stochastically(exact.float(), dtype, seed=0), exact)
    rounded = round_stochastically(SPECIAL, dtype, seed=0)
    torch.testing.assert_close(rounded.isfinite(), SPECIAL.to(dtype).isfinite())
    largest = torch.full((1000,), torch.finfo(dtype).max * (1 + torch.finfo(dtype).eps / 5))
    assert round_stochastically(largest, dtype, seed=0).isfinite().all()


def test_weights_are_rounded_alike_each_time_and_untouched_ones_not_at_all(tmp_path: Path) -> None:
    embedder = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path, dtype=torch.bfloat16)))
    merged = MergedWeights(embedder.backbone)
    nearest = RoundedWeights(merged, torch.bfloat16)
    stochastic = RoundedWeights(merged, torch.bfloat16, "stochastic")
    assert list(stochastic) == list(merged)
    for name, tensor in merged.items():
        assert torch.equal(nearest[name], tensor.to(torch.bfloat16))
        assert torch.equal(stochastic[name], stochastic[name])
        adapted = name.endswith("proj.weight")
        assert torch.equal(stochastic[name], nearest[name]) != adapted, name
    assert all(torch.equal(tensor, merged[name]) for name, tensor in RoundedWeights(merged, torch.float32).items())
