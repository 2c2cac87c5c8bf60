"""Run a script with bfloat16 products computed in float32, for a CPU without bfloat16, which is a hundred times slower.

python scripts/bench/bf16_products.py train/embed.py --config configs/embed/quickstart.yaml --precision bf16

As on a GPU, what goes into a product is bfloat16, sums are float32, and what comes out, gradients too, is rounded to
bfloat16. Everything else is torch's own. It shows what bfloat16 does to a training, and nothing about its speed.
"""

import runpy
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_products() -> None:
    """Replace torch's linear layers and attention; their backward passes compute in what the forward passes did."""
    for name in ("linear", "scaled_dot_product_attention"):
        setattr(F, name, in_float32(getattr(F, name)))
    torch.autograd.backward = torch.autocast("cpu", enabled=False)(torch.autograd.backward)


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which sums in float32 where torch would compute it in bfloat16."""

    @wraps(function)
    def product(*args: Any, **named: Any) -> Tensor:
        if not in_bfloat16([*args, *named.values()]):
            return function(*args, **named)
        with torch.autocast("cpu", enabled=False):
            result = function(*map(rounded, args), **{name: rounded(value) for name, value in named.items()})
        return result.bfloat16()

    return product


def in_bfloat16(values: Sequence[object]) -> bool:
    """Whether torch computes with these in bfloat16: under autocast, or since all tensors are."""
    dtypes = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return torch.is_autocast_enabled("cpu") or dtypes == {torch.bfloat16}


def rounded(value: Any) -> Any:
    """A tensor of numbers as float32 with values of bfloat16; anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) and value.is_floating_point() else value


if __name__ == "__main__":
    patch_products()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
