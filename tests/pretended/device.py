"""A device that is not there: tensors on it compute on the CPU, and refuse what a GPU refuses.

`open_device` registers it with torch as the backend "pretended", for the rest of the process. A tensor on it says so
(`tensor.device`), runs under autograd and autocast, and holds its values in a tensor on the CPU. An operation on
tensors of both devices raises as on a GPU, but for what is allowed there: copies, numbers without dimensions in
elementwise operations, and indices on the CPU. What makes the CPU wait for a GPU is recorded in `waits`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
aten = torch.ops.aten
CPU = torch.device("cpu")

# Each an operation with the innermost place in Nestling's files that asked for it.
waits: list[tuple[str, str]] = []

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
# Elementwise by nature, though torch does not tag them so.
ELEMENTWISE = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.self}
# Their result, or its shape, has to be known on the CPU.
READS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
FACTORIES = (
    *("arange", "empty", "empty_permuted", "empty_strided", "eye", "full", "linspace", "ones", "rand", "randint"),
    *("randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros"),
)


class DeviceTensor(Tensor):
    """A tensor on the pretended device.

    Args:
        inner: Its values, on the CPU.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner.detach()
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    # Assigning to `data` gives the tensor other values.
    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, DeviceTensor), "the data of a tensor on the device has to be there as well"
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    # It is saved as a tensor on the CPU; one of a GPU remembers its device, and is loaded with map_location.
    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied.__dict__ |= {name: value for name, value in vars(self).items() if name != "inner"}
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {NAME}"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of which at least one tensor is on the device."""
    if composite(func):
        with torch._C.DisableTorchFunctionSubclass():
            return func.decompose(*args, **kwargs)
    if func.namespace == "c10d":
        return communicate(func, args, kwargs)
    if func is aten.copy_.default:
        return copy(func, *args)
    if func is aten._fused_sdp_choice.default:
        return 0  # the kernel made of plain operations
    require_one_device(func, args, kwargs)
    note_wait(func, args, kwargs)
    target = torch.device(kwargs.get("device") or NAME)
    if func is aten._to_copy.default and target.type == "cpu":
        note(func)
    result = func(*tree_map(inner_of, args), **{name: tree_map(inner_of, each) for name, each in kwargs.items()})
    if target.type == "cpu":
        return result
    wrapped = tree_map(lambda each: DeviceTensor(each) if isinstance(each, Tensor) else each, result)
    checked = return_and_correct_aliasing(func, args, kwargs, wrapped)
    for each in tree_leaves((args, kwargs)):
        if isinstance(each, DeviceTensor) and each.shape != each.inner.shape:
            raise NotImplementedError(f"{func} changes the shape of a tensor in place")
    return checked


def inner_of(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) else value


@cache
def composite(func: Any) -> bool:
    """Whether an operation is made of others, which torch has not taken apart: in inference mode it does not."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def copy(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between devices, or within one."""
    if target.device != source.device and not (non_blocking and target.device.type == NAME):
        note(func)
    inner_of(target).copy_(inner_of(source))
    return target


def communicate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A collective of torch.distributed, in place; all its tensors have to be on the device."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    require_same(func, tensors)
    done = func(*tree_map(inner_of, args), **{name: tree_map(inner_of, each) for name, each in kwargs.items()})
    return (args[0], done[1]) if isinstance(done, tuple) else done


def require_one_device(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError where a GPU does, for tensors of both devices or a generator of the other."""
    generator = kwargs.get("generator")
    if generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    indices: list[Tensor] = []
    if func in INDEXING and isinstance(args[0], DeviceTensor):
        indices = [each for each in args[1] if each is not None]
        args = (args[0], *args[2:])
        if any(each.device.type == "cpu" and each.dim() for each in indices):
            note(func)
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    if torch.Tag.pointwise in func.tags or func in ELEMENTWISE or func in INDEXING:
        tensors = [each for each in tensors if each.dim() or isinstance(each, DeviceTensor)]
    require_same(func, tensors)


def require_same(func: Any, tensors: list[Tensor]) -> None:
    if any(not isinstance(each, DeviceTensor) for each in tensors):
        shapes = ", ".join(f"{list(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({func}: {shapes})"
        )


def note_wait(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Record an operation for whose result the CPU waits."""
    by_mask = func in INDEXING and any(each is not None and each.dtype == torch.bool for each in args[1])
    unknown = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if func in READS or by_mask or unknown:
        note(func)


def note(func: Any) -> None:
    frame = sys._getframe()
    while frame.f_back and not is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    place = f"{frame.f_code.co_filename.rpartition('/nestling/')[2]}:{frame.f_code.co_name}"
    waits.append((str(func), place))


def is_ours(file: str) -> bool:
    return "/src/nestling/" in file or file.endswith(("train/embed.py", "train/rerank.py"))


def make(op: Any) -> Callable[..., Tensor]:
    """A kernel that makes a tensor on the device."""

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        return DeviceTensor(op(*args, **{**kwargs, "device": CPU, "pin_memory": None}))

    return kernel


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `copy_` calls where torch keeps subclasses of tensors out, as in `torch.tensor`."""
    return copy(aten.copy_.default, target, source, non_blocking)


def register_factories(library: torch.library.Library) -> None:
    library.impl(aten._copy_from.default, copy_from, "PrivateUse1")
    for name in FACTORIES:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            if any(each.name == "device" for each in op._schema.arguments):
                library.impl(op, make(op), "PrivateUse1")


@contextmanager
def counted_waits() -> Iterator[list[tuple[str, str]]]:
    """The waits inside the block."""
    found: list[tuple[str, str]] = []
    start = len(waits)
    yield found
    found += waits[start:]
