"""Merge models into safetensors files or into a model in memory, slice by slice.

    inputs = Inputs.of([open_model("runs/a/final"), open_model("runs/b/final")])
    report = write_merged(inputs, Recipe("slerp", Weights((0.7, 0.3))), folder)

1. Tensors are taken in groups. A first pass over a group computes the products between models (`Inputs.compute_grams`).
2. What the method needs to know of each whole tensor, such as coefficients, follows from them (`plan`).
3. A second pass, for which the operating system still has the files cached, merges each slice in float64. It is rounded
   once, when it is stored.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nestling.config.merge_methods import Recipe
from nestling.console import working
from nestling.merging.inputs import Inputs
from nestling.merging.names import align, is_unread_pooler
from nestling.merging.report import MergeReport, describe
from nestling.merging.slices import SliceMerge, plan
from nestling.merging.workers import SLICE_SIZE, Workers, worker_threads
from nestling.models.safetensors_writer import SafetensorsWriter, Spec
from nestling.models.weights import SHARD_BYTES

# Most elements of a group, unless one tensor has more: few enough that the second pass finds the files cached.
GROUP_SIZE = 2**26

# Stores a slice: (tensor name, index of its first element in the flat tensor, values [n]); called from several threads.
Sink = Callable[[str, int, Tensor], None]


def write_merged(
    inputs: Inputs,
    recipe: Recipe,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: str | None = None,
    threads: int | None = None,
    slice_size: int = SLICE_SIZE,
) -> MergeReport:
    """Write the merged weights, and nothing else, into a folder: one safetensors file, or shards and their index.

    The files are not synced to disk here; `nestling.export.serving_files.new_directory` syncs what is written in it.

    Args:
        inputs: The models to merge.
        recipe: Method, weights and settings.
        folder: An existing folder.
        dtype: Dtype of the tensors of floating point; by default each tensor's own in the base or, without a base, in
            the first model.
        shard_bytes: Most bytes of tensors in a file.
        progress: Label of a progress bar in bytes; by default there is no bar.
        threads: Number of threads; by default torch.get_num_threads().
        slice_size: Elements that a thread works on at a time, a multiple of 65,536.

    Raises:
        ValueError: The recipe does not fit these models, a tensor holds nan or infinity, or a number is too large for
            float16.
    """
    require_applicable(inputs, recipe)
    specs = {name: output_spec(spec, dtype) for name, spec in inputs.specs.items()}
    with SafetensorsWriter(folder, specs, shard_bytes) as files:
        names = list(specs)
        return merge(inputs, recipe, files.write, names, progress=progress, threads=threads, slice_size=slice_size)


def require_applicable(inputs: Inputs, recipe: Recipe) -> None:
    """Raise ValueError unless the recipe takes this many models, with or without a base, and its patterns match."""
    recipe.require_models(len(inputs.models), base=inputs.base is not None)
    recipe.weights.require_found(list(inputs.specs))


def output_spec(spec: Spec, dtype: torch.dtype | None) -> Spec:
    """The spec of a merged tensor: in `dtype`, if that is given and the tensor is of floating point."""
    return Spec(spec.shape, dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype)


def merge_into(
    inputs: Inputs,
    recipe: Recipe,
    model: nn.Module,
    *,
    progress: str | None = None,
    threads: int | None = None,
    slice_size: int = SLICE_SIZE,
) -> MergeReport:
    """Copy the merged weights into a model in memory, rounded to its dtypes, so that they can be evaluated.

    Args:
        inputs: The models to merge. Tensors that `model` does not have, such as an output layer, are left out.
        recipe: Method, weights and settings.
        model: A transformers model without adapters. Its tensor names may differ by the backbone's prefix.
        progress: As in `write_merged`.
        threads: As in `write_merged`.
        slice_size: As in `write_merged`.

    Raises:
        ValueError: As in `write_merged`, or `model` has a tensor that the inputs lack or have in another shape.
    """
    destinations = matching_state(model, inputs)

    def copy(name: str, start: int, values: Tensor) -> None:
        destinations[name][start : start + len(values)].copy_(values)

    names = list(destinations)
    return merge(inputs, recipe, copy, names, progress=progress, threads=threads, slice_size=slice_size)


def matching_state(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of a model, flat, under the inputs' names.

    Raises:
        ValueError: The inputs lack one of them, but for a pooler that nothing reads, or have it in another shape.
    """
    state = untied_state(model)
    names = align(state.keys(), inputs.specs.keys())
    missing = [name for name in state if name not in names and not is_unread_pooler(name)]
    if missing:
        raise ValueError(f"the model has {len(missing)} tensors that {inputs.reference.label} lacks: {missing[:3]}")
    for name, in_inputs in names.items():
        if state[name].shape != inputs.specs[in_inputs].shape:
            raise ValueError(
                f"{name} is {list(state[name].shape)} in the model and {list(inputs.specs[in_inputs].shape)} in "
                f"{inputs.reference.label}"
            )
    return {in_inputs: state[name].view(-1) for name, in_inputs in names.items()}


def untied_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers; of tied ones, which share memory, only the first."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape)
        if identity not in seen:
            state[name] = tensor
        if tensor.numel():  # empty tensors all have the address 0
            seen.add(identity)
    return state


def merge(
    inputs: Inputs,
    recipe: Recipe,
    sink: Sink,
    names: Sequence[str],
    *,
    progress: str | None = None,
    threads: int | None = None,
    slice_size: int = SLICE_SIZE,
) -> MergeReport:
    """Merge some tensors and pass every slice to `sink`, in float64; tensors of integers are passed whole, unchanged.

    Args:
        inputs: The models to merge.
        recipe: Method, weights and settings.
        sink: Stores a slice.
        names: Tensors to merge.
        progress: As in `write_merged`.
        threads: As in `write_merged`.
        slice_size: As in `write_merged`.
    """
    require_applicable(inputs, recipe)
    integers = set(inputs.integer_tensors)
    floating = [name for name in names if name not in integers]
    total_bytes = sum(inputs.specs[name].nbytes() for name in names)
    with (
        worker_threads(threads, slice_size) as workers,
        _bytes_bar(total_bytes, progress) as bar,
        working(progress or "merging", shown=bool(bar.disable)),
    ):
        for name in names:
            if name in integers:
                sink(name, 0, inputs.reference.read(name, 0, inputs.specs[name].numel))
                bar.update(inputs.specs[name].nbytes())
        for group in groups(floating, inputs):
            inputs.compute_grams(group, workers)
            for merged_bytes in _merge_group(inputs, recipe, sink, group, workers):
                bar.update(merged_bytes)
    return describe(inputs, recipe, floating)


def _merge_group(inputs: Inputs, recipe: Recipe, sink: Sink, names: Sequence[str], workers: Workers) -> Iterator[int]:
    """Merge tensors whose grams have been computed; yields the bytes of each slice once it is stored."""

    def work(task: tuple[str, SliceMerge, int, int]) -> int:
        name, merge_slice, start, stop = task
        sink(name, start, merge_slice(start, stop))
        return (stop - start) * inputs.specs[name].dtype.itemsize

    plans = [(name, plan(inputs, recipe, name, workers)) for name in names]
    tasks = [(name, planned, *bounds) for name, planned in plans for bounds in workers.slices(inputs.specs[name].numel)]
    return workers.map(work, tasks)


def groups(names: Sequence[str], inputs: Inputs) -> Iterator[list[str]]:
    """The names in their order, in groups of at most `GROUP_SIZE` elements or of one larger tensor."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + inputs.specs[name].numel > GROUP_SIZE:
            yield group
            group, size = [], 0
        group.append(name)
        size += inputs.specs[name].numel
    if group:
        yield group


def _bytes_bar(total: int, label: str | None) -> "tqdm[Any]":
    """A progress bar in bytes, shown only on a terminal and with a label."""
    disable = None if label else True  # None: tqdm disables the bar where there is no terminal
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, smoothing=0, disable=disable, leave=False)
