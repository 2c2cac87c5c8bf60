"""What a merge reads: pieces of named tensors, never a whole one."""

import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nestling.merging.workers import PIECE
from nestling.models.weights import model_file, weight_files

# The names that safetensors has for them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Spec:
    """A tensor's shape and dtype, as published."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of the tensor, in `dtype` if it is of floating point."""
        return self.numel * (dtype if dtype and self.dtype.is_floating_point else self.dtype).itemsize


class Source(Protocol):
    """The tensors of a model."""

    @property
    def label(self) -> str:
        """How errors and reports call it."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Its tensors by name."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start]: elements of the flat tensor, not to be written to; called from several threads.

        Numbers of floating point come in whatever precision they are known in, at least that of the spec.
        """


@dataclass(frozen=True)
class StoredTensors:
    """Tensors in safetensors files. A piece is mapped when it is read, and unmapped when it is dropped.

    Args:
        label: How errors call it.
        specs: The tensors.
        places: Of each its file and where it begins in it, in bytes.
    """

    label: str
    specs: Mapping[str, Spec]
    places: Mapping[str, tuple[Path, int]]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        path, begin = self.places[name]
        dtype = self.specs[name].dtype
        if start >= stop:
            return torch.empty(0, dtype=dtype)
        first = begin + start * dtype.itemsize
        skipped = first % mmap.ALLOCATIONGRANULARITY
        length = skipped + (stop - start) * dtype.itemsize
        with path.open("rb") as file:  # copy on write: torch wants memory that it could write to
            piece = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=first - skipped)
        return torch.frombuffer(piece, dtype=dtype, count=stop - start, offset=skipped)


def stored_tensors(files: Iterable[Path], label: str) -> StoredTensors:
    """The tensors of some safetensors files.

    Raises:
        ValueError: A file is none, is cut off, or has a dtype that cannot be merged.
    """
    specs: dict[str, Spec] = {}
    places: dict[str, tuple[Path, int]] = {}
    for path in files:
        header, begin = read_header(path)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(
                    f"{path}: {name} is {entry['dtype']}, and what is merged is one of {', '.join(DTYPES)}; "
                    "merge models before they are quantised"
                )
            specs[name] = Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            places[name] = path, begin + entry["data_offsets"][0]
    return StoredTensors(label, specs, places)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Of a safetensors file: what it says of each tensor, and where their bytes begin."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(min(length, path.stat().st_size)))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError) as error:  # pickles, text, half a header
        raise ValueError(f"{path}: not a safetensors file ({error!r})") from error
    if path.stat().st_size < end:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes instead of {end}; it was not written to its end")
    return header, 8 + length


def open_weights(model: str, subfolder: str = "") -> Source:
    """The weights of a model directory or a hub id in the cache, in one file or in shards; tied ones once.

    Raises:
        ValueError: There are none, or they are pickled.
    """
    files = weight_files(model, subfolder)
    if any(path.suffix == ".bin" for path in files):
        raise ValueError(
            f"{model}: its weights are pickled ({files[0].name}) and cannot be read in pieces; load it with "
            "transformers and save it again, which writes safetensors"
        )
    stored = stored_tensors(files, model)
    config = model_file(model, "config.json", subfolder)
    ties = config is not None and json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings") is True
    return without_tied_head(stored) if ties else stored


def without_tied_head(stored: StoredTensors) -> StoredTensors:
    """Leaves out an output layer that is the token embeddings once more.

    Raises:
        ValueError: It is not, so that loaders would not tie it either.
    """
    head = "lm_head.weight"
    if head not in stored.specs:
        return stored
    twins = [name for name, spec in stored.specs.items() if spec == stored.specs[head] and name != head]
    if twins and not any(same(stored, head, stored, name) for name in twins):
        raise ValueError(
            f"{stored.label}: config.json ties word embeddings, but {head} differs from {', '.join(twins)}; "
            "set tie_word_embeddings to what the weights are"
        )
    specs = {name: spec for name, spec in stored.specs.items() if not twins or name != head}
    return StoredTensors(stored.label, specs, stored.places)


def same(source: Source, name: str, other: Source, other_name: str) -> bool:
    """Whether two tensors have the same shape, dtype and elements."""
    spec = source.specs[name]
    return spec == other.specs[other_name] and all(
        torch.equal(
            source.read(name, start, min(start + PIECE, spec.numel)),
            other.read(other_name, start, min(start + PIECE, spec.numel)),
        )
        for start in range(0, spec.numel, PIECE)
    )


@dataclass(frozen=True)
class Overlaid:
    """A model some of whose tensors are replaced.

    Args:
        label: How errors call it.
        under: The model.
        over: What replaces its tensors.
        names: Of each tensor that is replaced, what `over` calls it.
    """

    label: str
    under: Source
    over: Source
    names: Mapping[str, str]

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.under.specs

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name in self.names:
            return self.over.read(self.names[name], start, stop)
        return self.under.read(name, start, stop)


@dataclass(frozen=True)
class Renamed:
    """A model whose tensors have other names.

    Args:
        source: The model.
        names: What the model itself calls each.
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
