"""The kernels that torch.compile plans for a layer, counted without a compiler: none is generated, and none runs."""

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config, ir
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.exc import InductorError
from torch._inductor.scheduler import BaseSchedulerNode, NopKernelSchedulerNode

from nestling.costs.traffic import NONE, Traffic, attention_operations, traffic_of


class PlannedError(Exception):
    """Raised when the kernels of a graph are known, in place of generating them."""


class KernelPlan:
    """A backend of torch.compile whose programs return tensors without data, and count what their kernels would need.

    The kernels are those that inductor plans for a CPU; a GPU's differ in a few reductions, and in attention with fewer
    key-value heads, for which a CPU repeats these.

    Attributes:
        found: The sum over all runs so far.
    """

    def __init__(self) -> None:
        self.found = NONE

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        with functorch_config.patch(enable_autograd_cache=False):  # which has programs that have been compiled
            return compile_fx(graph, list(inputs), inner_compile=self._plan)

    def _plan(self, graph: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
        returned = cast(Sequence[Any], graph.graph.output_node().args[0])
        outputs = [getattr(each, "meta", {}).get("val", each) for each in returned]
        needed = traffic_of_graph(graph, inputs, **settings)

        def run(arguments: list[Any]) -> list[Any]:
            arguments.clear()
            self.found += needed
            return [without_data(each) if isinstance(each, Tensor) else each for each in outputs]

        run._boxed_call = True  # type: ignore[attr-defined]  # it may clear the list of its arguments
        return run


def without_data(like: Tensor) -> Tensor:
    """A tensor of the same form, in the mode of tensors without data that is on now."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)


def traffic_of_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Traffic:
    """What the kernels that inductor plans for a graph need."""
    found = NONE

    def count(nodes: list[BaseSchedulerNode]) -> list[BaseSchedulerNode]:
        nonlocal found
        for node in nodes:
            found += traffic_of_kernel(node)
        raise PlannedError

    with config.patch(_post_fusion_custom_pass=count, fx_graph_cache=False):
        try:
            compile_fx_inner(deepcopy(graph), inputs, **settings)
        except InductorError as error:
            if isinstance(error.inner_exception, PlannedError):
                return found
            raise
    raise AssertionError("inductor made no plan")


def traffic_of_kernel(node: BaseSchedulerNode) -> Traffic:
    """What one kernel of a plan needs."""
    kernel: Any = node.node
    if isinstance(node, NopKernelSchedulerNode) or isinstance(kernel, ir.MultiOutput):
        return NONE
    moved = node.get_read_write_buffers_sizes()
    name = str(getattr(kernel, "op_overload", ""))
    if "scaled_dot_product" in name:
        backward = "backward" in name
        query = [int(each) for each in kernel.inputs[1 if backward else 0].get_size()]
        moved += sum(bytes_of(each) for each in kernel.outputs if isinstance(each, ir.MultiOutput))
        return traffic_of(moved, *attention_operations(query, backward=backward))
    operations = float(node.estimate_flops() or 0)
    return traffic_of(moved, operations, operations)


def bytes_of(output: ir.MultiOutput) -> int:
    return prod(int(each) for each in output.get_size()) * output.get_dtype().itemsize
