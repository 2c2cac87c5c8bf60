"""What operations read, write and launch on a GPU, counted on tensors without data, and the time that it takes by it.

A model, not a measurement: every operation that is no view is one launch, which reads its inputs and writes its outputs
once, at the speed of the memory; large matrix products and attention take the time of their operations instead.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nestling.config.costs import GpuName

# Operations that read and write nothing on the device.
FREE = ("prim::", "aten::empty", "aten::new_empty", "aten::detach", "aten::lift", "aten::_local_scalar_dense")
# A product with fewer operations for each byte, such as one with a LoRA factor, takes the time of its bytes.
THIN = 100


@dataclass(frozen=True)
class Traffic:
    """What some operations need.

    Args:
        launches: Kernels.
        bytes: Read and written by all that are limited by the memory.
        operations: Floating-point operations of those that are not: large matrix products and attention.
        work: Floating-point operations of all products and attention, without those that are computed again.
    """

    launches: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0
    work: float = 0.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Traffic") -> "Traffic":
        return self + other.times(-1.0)

    def times(self, count: float) -> "Traffic":
        return Traffic(*(each * count for each in astuple(self)))


NONE = Traffic()


@dataclass(frozen=True)
class Roofline:
    """The speeds of a GPU.

    Args:
        bandwidth: Bytes a second of its memory, as measured.
        products: Operations a second of large bfloat16 matrix products, as measured.
        published: Dense bfloat16 operations a second, as published.
    """

    bandwidth: float
    products: float
    published: float

    def seconds(self, traffic: Traffic) -> float:
        """Time without the gaps between launches."""
        return traffic.bytes / self.bandwidth + traffic.operations / self.products

    def share(self, forward: Traffic, backward: Traffic, *, forwards: float = 1.0, counted: float = 1.0) -> float:
        """Share of the published speed of a step with so many forward passes, of which `counted` count as work."""
        seconds = forwards * self.seconds(forward) + self.seconds(backward)
        return (counted * forward.work + backward.work) / seconds / self.published


H100 = Roofline(2.6e12, 800e12, 989e12)
H100_BANDWIDTH = 3.35e12  # published


def like_h100(bandwidth: float, published: float) -> Roofline:
    """A GPU that reaches as much of its published bandwidth and speed as an H100."""
    return Roofline(bandwidth * H100.bandwidth / H100_BANDWIDTH, published * H100.products / H100.published, published)


# Bytes and dense bfloat16 operations a second of the others are from the data sheets of their manufacturer.
ROOFLINES: dict[GpuName, Roofline] = {
    "l4": like_h100(0.3e12, 121e12),
    "a100-40": like_h100(1.555e12, 312e12),
    "a100-80": like_h100(2.039e12, 312e12),
    "h100": H100,
    "h200": Roofline(4.0e12, 800e12, 989e12),
}


class TrafficCounter(TorchDispatchMode):
    """Counts what the operations inside its context need.

    Attributes:
        found: The sum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = NONE

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # else torch.compile would run no program inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not (func.is_view or func.name().startswith(FREE)):
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
            moved = sum(each.numel() * each.element_size() for each in tensors)
            self.found += traffic_of(moved, *operations_of(func, args, kwargs, out))
        return out


def traffic_of(moved: float, operations: float, work: float) -> Traffic:
    """What a kernel needs that moves some bytes and computes some operations."""
    thin = operations < THIN * moved
    return Traffic(1, moved if thin else 0, 0 if thin else operations, work)


def operations_of(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[float, float]:
    """Floating-point operations of a matrix product or attention, and those of them that are not computed again.

    0 of all else. torch has no count for attention on a CPU, on which tensors without data compute.
    """
    if "scaled_dot_product" in func.name():
        backward = "backward" in func.name()
        return attention_operations(args[1 if backward else 0].shape, backward=backward)
    count = flop_registry.get(func.overloadpacket)
    operations = 0.0 if count is None else float(count(*args, **kwargs, out_val=out))
    return operations, operations


def attention_operations(query: Sequence[int], *, backward: bool) -> tuple[float, float]:
    """Operations of attention of queries [B, heads, L, D] on as many keys, and those that are not computed again.

    4 for each pair of tokens and dimension of a head forward and 8 backward, which computes the scores again by 2 more.
    Kernels for causal models skip nearly half of the pairs.
    """
    pairs = float(prod(query) * query[2])
    return (10 * pairs, 8 * pairs) if backward else (4 * pairs, 4 * pairs)
