"""A stand-in for torch's attention of packed texts: it has the signature of the kernel, and is as strict."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from models.test_attention import torch_2_13
from pretended.device import DeviceTensor


class Attention(torch.autograd.Function):
    """The reference on the CPU, between tensors on the device."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Any, ...], more: Any) -> Tensor:
        inner = [each.inner.detach().requires_grad_() for each in (query, key, value)]
        with torch.enable_grad(), torch.autocast("pretended", enabled=False):
            ctx.output = torch_2_13(*inner, *bounds, **more).to(query.dtype)
        ctx.inputs = inner
        return DeviceTensor(ctx.output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        found = torch.autograd.grad(ctx.output, ctx.inputs, gradient.inner)
        return *(DeviceTensor(each) for each in found), None, None


def varlen_kernel(patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Put the stand-in in the kernel's place; how many queries and keys it is called with."""
    calls: list[tuple[int, int]] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **more: Any) -> Tensor:
        tensors = [query, key, value, *bounds[:2]]
        assert all(isinstance(each, DeviceTensor) for each in tensors), [each.device for each in tensors]
        calls.append((len(query), len(key)))
        on_cpu = [each.inner if isinstance(each, DeviceTensor) else each for each in bounds]
        return Attention.apply(query, key, value, tuple(on_cpu), more)  # type: ignore[no-any-return]

    kernel.__signature__ = inspect.signature(torch_2_13)  # type: ignore[attr-defined]
    patch.setattr(varlen, "varlen_attn", kernel)
    return calls
