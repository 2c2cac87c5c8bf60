"""The pretended device as torch's other parts see it: its module, its autocast, and who is told to use it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import safetensors.torch
import torch
from accelerate.state import PartialState
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

from nestling import gpu
from pretended.device import NAME, aten, inner_of, register_factories

ROOM = 64 * 2**30  # bytes that the device says it has
LIBRARIES: list[torch.library.Library] = []  # what is registered lives as long as they do

# What autocast computes in the lower precision on CUDA, of what transformers, peft and Nestling call.
LOWERED = ("addmm", "baddbmm", "bmm", "conv1d", "linear", "matmul", "mm", "scaled_dot_product_attention")
# What it computes in float32.
RAISED = (
    *("cosine_similarity", "cross_entropy_loss", "cumsum", "exp", "layer_norm", "log", "log_softmax", "logsumexp"),
    *("norm", "nll_loss", "pow", "prod", "reciprocal", "rsqrt", "softmax", "sum"),
)


class Stream:
    """Of work that is done at once."""

    def __init__(self, *arguments: object, **more: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self, event: object = None) -> "Event":
        return Event()

    def synchronize(self) -> None: ...


class Event:
    """Which has come."""

    def record(self, stream: object = None) -> "Event":
        return self

    def wait(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...


class Module(backend_registration._DummyBackendModule):
    """What torch.cuda is for CUDA, as far as it is asked for."""

    _initialized = True
    Stream, Event = Stream, Event

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: object = None) -> None: ...

    def empty_cache(self) -> None: ...

    def set_device(self, device: object) -> None: ...

    def device(self, device: object) -> Any:
        return nullcontext()

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return ROOM, ROOM

    def memory_allocated(self, device: object = None) -> int:
        return 0

    memory_reserved = max_memory_allocated = memory_allocated

    def reset_peak_memory_stats(self, device: object = None) -> None: ...

    def current_stream(self, device: object = None) -> "Stream":
        return Stream()

    def stream(self, stream: object) -> Any:
        return nullcontext()


class Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def open_device() -> torch.device:
    """Register the device, and have Nestling and Accelerate choose it; before the first backward pass of the process.

    torch starts the threads of backward passes, one for each device, at the first.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module(), hook=Hooks())
    torch.__future__.set_swap_module_params_on_conversion(True)  # keeps the identity of parameters that are moved
    factories = torch.library.Library("aten", "IMPL")
    register_factories(factories)
    LIBRARIES.extend([factories, *autocast()])
    device = torch.device(NAME, 0)
    flatten = safetensors.torch._flatten_as_ptr
    safetensors.torch._flatten_as_ptr = lambda tensors, *rest: flatten(tree_map(inner_of, tensors), *rest)
    PartialState.default_device = property(lambda self: device)
    gpu.best_device = lambda: device
    return device


def autocast() -> list[torch.library.Library]:
    """Kernels of autocast, as CUDA has them."""
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    kernels = torch.library.Library("aten", "IMPL")
    for names, dtype in ((LOWERED, lambda: torch.get_autocast_dtype(NAME)), (RAISED, lambda: torch.float32)):
        for name in names:
            packet = getattr(aten, name)
            for overload in packet.overloads():
                if "out" not in overload:
                    kernels.impl(
                        getattr(packet, overload), casting(getattr(packet, overload), dtype), "AutocastPrivateUse1"
                    )
    return [others, kernels]


AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def casting(op: Any, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    """A kernel that casts what is on the device."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        to = dtype()

        def cast(value: Any) -> Any:
            lower = isinstance(value, Tensor) and value.device.type == NAME and value.is_floating_point()
            return value.to(to) if lower and value.dtype != torch.float64 else value

        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel
