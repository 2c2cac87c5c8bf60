"""Models merged into files or into a model in memory, a few pieces at a time.

    inputs = Inputs.of([open_model("runs/a/final"), open_model("runs/b/final")])
    report = write_merged(inputs, Recipe("slerp", Weights((0.7, 0.3))), folder)

1. Tensors are taken in groups. A first pass over a group measures the products between the models (`Inputs.grams`).
2. What each method needs of a whole tensor is solved from them (`plans`).
3. A second pass, which finds the files still cached, merges the pieces in float64 and rounds them once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nestling.config.merge_methods import Recipe
from nestling.merging.inputs import Inputs
from nestling.merging.names import align
from nestling.merging.pieces import PieceMerge, plan
from nestling.merging.report import MergeReport, describe
from nestling.merging.sources import Spec
from nestling.merging.workers import PIECE, Workers, working
from nestling.merging.writing import TensorFiles
from nestling.models.weights import SHARD_BYTES

# Elements of a group, or one tensor that is larger: few enough that the second pass finds them cached.
GROUP = 2**26

# Takes a piece of a tensor: its name, where it starts, its values; called from several threads.
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
    piece: int = PIECE,
) -> MergeReport:
    """Write the merged weights, and nothing else, into a folder: safetensors, in one file or shards with their index.

    They are not forced onto the disk; inside `nestling.export.serving_files.new_directory` that happens at its end.

    Args:
        inputs: What is merged.
        recipe: How.
        folder: An existing folder.
        dtype: Of numbers of floating point; each tensor's own in the base, or in the first model, by default.
        shard_bytes: Size of a file.
        progress: Label of a bar that shows bytes a second.
        threads: As many as torch would use by default.
        piece: Elements in the work of one thread, a multiple of 65,536.

    Raises:
        ValueError: The recipe is not for these models, or numbers are not finite.
    """
    require_fit(inputs, recipe)
    specs = {name: written(spec, dtype) for name, spec in inputs.specs.items()}
    with TensorFiles(folder, specs, shard_bytes) as files:
        return merge(inputs, recipe, files.write, list(specs), progress=progress, threads=threads, piece=piece)


def require_fit(inputs: Inputs, recipe: Recipe) -> None:
    """Raise ValueError unless the recipe is for such models, and all its patterns are of tensors that they have."""
    recipe.require_models(len(inputs.models), base=inputs.base is not None)
    recipe.weights.require_found(list(inputs.specs))


def written(spec: Spec, dtype: torch.dtype | None) -> Spec:
    return Spec(spec.shape, dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype)


def merge_into(
    inputs: Inputs,
    recipe: Recipe,
    model: nn.Module,
    *,
    progress: str | None = None,
    threads: int | None = None,
    piece: int = PIECE,
) -> MergeReport:
    """Give a model in memory the merged weights, in place, rounded to its own dtypes; for a look before they are
    written.

    Args:
        inputs: What is merged; tensors that the model does not have, such as an output layer, are left out.
        recipe: How.
        model: A transformers model, without adapters. Its names may have the backbone's prefix or not.
        progress: As in `write_merged`, and so are the rest.

    Raises:
        ValueError: The model has a tensor that the inputs lack, or in another shape.
    """
    targets = state_once(model)
    names = align(targets.keys(), inputs.specs.keys())
    missing = [name for name in targets if name not in names]
    if missing:
        raise ValueError(f"the model has {len(missing)} tensors that {inputs.reference.label} lacks: {missing[:3]}")
    for name, to in names.items():
        if targets[name].shape != inputs.specs[to].shape:
            raise ValueError(
                f"{name} is {list(targets[name].shape)} in the model and {list(inputs.specs[to].shape)} in "
                f"{inputs.reference.label}"
            )
    flat = {to: targets[name].view(-1) for name, to in names.items()}

    def place(name: str, start: int, values: Tensor) -> None:
        flat[name][start : start + len(values)].copy_(values)

    return merge(inputs, recipe, place, list(flat), progress=progress, threads=threads, piece=piece)


def state_once(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers, of tied ones the first."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape)
        if identity not in seen:
            found[name] = tensor
        if tensor.numel():
            seen.add(identity)
    return found


def merge(
    inputs: Inputs,
    recipe: Recipe,
    sink: Sink,
    names: Sequence[str],
    *,
    progress: str | None = None,
    threads: int | None = None,
    piece: int = PIECE,
) -> MergeReport:
    """Give every piece of the merged tensors to `sink`, in float64; tensors of integers as they are."""
    require_fit(inputs, recipe)
    buffers = set(inputs.buffers)
    floating = [name for name in names if name not in buffers]
    size = sum(inputs.specs[name].nbytes() for name in names)
    with working(threads, piece) as workers, _bytes_bar(size, progress) as bar:
        for name in names:
            if name in buffers:
                sink(name, 0, inputs.reference.read(name, 0, inputs.specs[name].numel))
                bar.update(inputs.specs[name].nbytes())
        for group in groups(floating, inputs):
            inputs.measure(group, workers)
            for done in _merge_group(inputs, recipe, sink, group, workers):
                bar.update(done)
    return describe(inputs, recipe, floating)


def _merge_group(inputs: Inputs, recipe: Recipe, sink: Sink, names: Sequence[str], workers: Workers) -> Iterator[int]:
    """Bytes of each piece that is done."""

    def work(part: tuple[str, PieceMerge, int, int]) -> int:
        name, values, start, stop = part
        sink(name, start, values(start, stop))
        return (stop - start) * inputs.specs[name].dtype.itemsize

    planned = [(name, plan(inputs, recipe, name, workers)) for name in names]
    parts = [(name, how, *cut) for name, how in planned for cut in workers.pieces(inputs.specs[name].numel)]
    return workers.map(work, parts)


def groups(names: Sequence[str], inputs: Inputs) -> Iterator[list[str]]:
    """The names in their order, cut where a group has `GROUP` elements."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + inputs.specs[name].numel > GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += inputs.specs[name].numel
    if group:
        yield group


def _bytes_bar(size: int, label: str | None) -> "tqdm[Any]":
    """A bar on a terminal; hidden without label."""
    hidden = None if label else True
    return tqdm(total=size, desc=label, unit="B", unit_scale=True, smoothing=0, disable=hidden, leave=False)
