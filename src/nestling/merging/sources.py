"""Sources of tensors: what a merge reads, slice by slice, so that no tensor is ever in memory as a whole.

A slice is a range of elements, start to stop, of a tensor seen as one flat vector.
"""

import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nestling.merging.workers import SLICE_SIZE
from nestling.models.json_files import parse_object
from nestling.models.safetensors_writer import DTYPES, Spec
from nestling.models.weights import model_file, open_safetensors, weight_files


class Source(Protocol):
    """A model as named tensors that are read in slices."""

    @property
    def label(self) -> str:
        """What errors and reports call the model, such as its path."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Shape and dtype of each tensor, by its name."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """A slice of a tensor, [stop - start]. The caller must not write to it, and may call from several threads.

        Its dtype may be of higher precision than in `specs`, such as float32 for a checkpoint on a bfloat16 base.
        """


@dataclass(frozen=True)
class StoredTensors:
    """Tensors in safetensors files. Each slice is memory-mapped on its own, and unmapped once it is garbage.

    Args:
        label: What errors and reports call the model.
        specs: Shape and dtype of each tensor.
        locations: The file of each tensor, and the offset of the tensor's first byte in it.
    """

    label: str
    specs: Mapping[str, Spec]
    locations: Mapping[str, tuple[Path, int]]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        path, offset = self.locations[name]
        dtype = self.specs[name].dtype
        if start >= stop:
            return torch.empty(0, dtype=dtype)
        first = offset + start * dtype.itemsize
        skipped = first % mmap.ALLOCATIONGRANULARITY  # a map can only begin at a multiple of this
        length = skipped + (stop - start) * dtype.itemsize
        with path.open("rb") as file:  # copy on write, because torch warns about memory that is read-only
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first - skipped)
        return torch.frombuffer(mapped, dtype=dtype, count=stop - start, offset=skipped)


def stored_tensors(files: Iterable[Path], label: str) -> StoredTensors:
    """The tensors of one or more safetensors files, of which only the headers are read.

    Raises:
        ValueError: A file is not a safetensors file, is truncated, or has a dtype that cannot be merged.
    """
    specs: dict[str, Spec] = {}
    locations: dict[str, tuple[Path, int]] = {}
    for path in files:
        header, data_start = read_header(path)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(
                    f"{path}: {name} is {entry['dtype']}, and what is merged is one of {', '.join(DTYPES)}; "
                    "merge models before they are quantised"
                )
            specs[name] = Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            locations[name] = path, data_start + entry["data_offsets"][0]
    return StoredTensors(label, specs, locations)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, without its metadata, and the offset at which the tensors' bytes begin."""
    open_safetensors(path)  # refuses pickles, text, half a header and a file that is shorter than its header says
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def open_weights(model: str, subfolder: str = "") -> Source:
    """The weights of a model directory or cached hub id, in one file or in shards; a tied output layer is left out.

    Raises:
        ValueError: There are no weights, or they are pickled.
    """
    files = weight_files(model, subfolder)
    if any(path.suffix == ".bin" for path in files):
        raise ValueError(
            f"{model}: its weights are pickled ({files[0].name}) and cannot be read in slices; load it with "
            "transformers and save it again, which writes safetensors"
        )
    stored = stored_tensors(files, model)
    config = model_file(model, "config.json", subfolder)
    ties = config is not None and parse_object(config).get("tie_word_embeddings") is True
    return without_tied_head(stored) if ties else stored


def without_tied_head(stored: StoredTensors) -> StoredTensors:
    """The tensors without lm_head.weight where it is a copy of the token embeddings.

    Raises:
        ValueError: It differs from every tensor of its shape and dtype, although config.json says that it is tied.
    """
    head = "lm_head.weight"
    if head not in stored.specs:
        return stored
    candidates = [name for name, spec in stored.specs.items() if spec == stored.specs[head] and name != head]
    if candidates and not any(equal_tensors(stored, head, stored, name) for name in candidates):
        raise ValueError(
            f"{stored.label}: config.json ties word embeddings, but {head} differs from {', '.join(candidates)}; "
            "set tie_word_embeddings to what the weights are"
        )
    specs = {name: spec for name, spec in stored.specs.items() if not candidates or name != head}
    return StoredTensors(stored.label, specs, stored.locations)


def equal_tensors(source: Source, name: str, other: Source, other_name: str) -> bool:
    """Whether two tensors have the same shape, dtype and elements."""
    spec = source.specs[name]
    return spec == other.specs[other_name] and all(
        torch.equal(
            source.read(name, start, min(start + SLICE_SIZE, spec.numel)),
            other.read(other_name, start, min(start + SLICE_SIZE, spec.numel)),
        )
        for start in range(0, spec.numel, SLICE_SIZE)
    )


@dataclass(frozen=True)
class ReplacedTensors:
    """A base with some of its tensors replaced.

    Args:
        label: What errors and reports call the model.
        base: Gives the specs of all tensors and the values of those that are not replaced.
        replacements: Values of the others.
        names: From the base's name of each replaced tensor to its name in `replacements`.
    """

    label: str
    base: Source
    replacements: Source
    names: Mapping[str, str]

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.base.specs

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name in self.names:
            return self.replacements.read(self.names[name], start, stop)
        return self.base.read(name, start, stop)


@dataclass(frozen=True)
class RenamedTensors:
    """A model's tensors, or some of them, under other names.

    Args:
        source: The model.
        names: From the new name of each tensor to its name in `source`.
    """

    source: Source
    names: Mapping[str, str]

    @property
    def label(self) -> str:
        return self.source.label

    @cached_property
    def specs(self) -> Mapping[str, Spec]:
        return {name: self.source.specs[own] for name, own in self.names.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.source.read(self.names[name], start, stop)
