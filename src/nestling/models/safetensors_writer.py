"""Safetensors files that are written slice by slice, in any order, from several threads."""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from nestling.disk_errors import named

# By the names of dtypes in the header of a safetensors file.
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
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor as it is stored."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of the tensor; in `dtype`, if that is given and the tensor is of floating point."""
        return self.numel * (dtype if dtype and self.dtype.is_floating_point else self.dtype).itemsize


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is written.

    Args:
        path: Its file.
        descriptor: File descriptor of the open file.
        offset: Offset of the tensor's first byte in the file.
        dtype: Dtype of the tensor in the file.
    """

    path: Path
    descriptor: int
    offset: int
    dtype: torch.dtype


class SafetensorsWriter:
    """Writes `model.safetensors`, or shards and their index, into a folder.

    On entry it writes the headers and gives the files their full size, so that slices can be written in any order.

    Args:
        folder: An existing folder.
        specs: Shape, and dtype to write, of each tensor.
        shard_bytes: Most bytes of tensors in a file; a larger tensor has a file of its own.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], shard_bytes: int) -> None:
        self.folder = folder
        self.shards = list(split_into_shards(specs, shard_bytes))
        self.specs = specs
        self._open_files = ExitStack()
        self._locations: dict[str, TensorLocation] = {}

    def __enter__(self) -> Self:
        with self._open_files as opened:
            for path, names in zip(self.paths, self.shards, strict=True):
                self._start_file(path, names)
            if len(self.shards) > 1:
                self._write_index()
            self._open_files = opened.pop_all()  # no error: keep them open until __exit__
        return self

    def __exit__(self, *raised: object) -> None:
        self._open_files.close()

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of `shards`."""
        count = len(self.shards)
        if count == 1:
            return [self.folder / "model.safetensors"]
        return [self.folder / f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write a slice of a tensor, converted to the tensor's dtype in the file.

        Args:
            name: The tensor's name.
            start: Index of the slice's first element in the flat tensor.
            values: The slice, [n].

        Raises:
            ValueError: A number is too large for float16.
        """
        location = self._locations[name]
        rounded = values.to(location.dtype)
        if location.dtype == torch.float16 and not rounded.isfinite().all():
            raise ValueError(f"{name} has numbers that are too large for float16; write bfloat16 or float32")
        data = rounded.view(torch.uint8).numpy().data
        offset = location.offset + start * location.dtype.itemsize
        with named(location.path):
            while data:
                written = os.pwrite(location.descriptor, data, offset)  # may be less than all
                data, offset = data[written:], offset + written

    def _start_file(self, path: Path, names: Iterable[str]) -> None:
        """Write the header of a file and extend the file to its full size."""
        # Larger dtypes first, as in safetensors, so that the offset of each tensor is a multiple of its itemsize.
        ordered = sorted(names, key=lambda name: -self.specs[name].dtype.itemsize)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in ordered:
            spec = self.specs[name]
            begin, end = end, end + spec.nbytes()
            entries[name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with named(path):
            file = self._open_files.enter_context(path.open("wb"))
            file.write(struct.pack("<Q", len(text)) + text)
            file.flush()
            os.truncate(file.fileno(), 8 + len(text) + end)
        offset = 8 + len(text)
        for name in ordered:
            self._locations[name] = TensorLocation(path, file.fileno(), offset, self.specs[name].dtype)
            offset += self.specs[name].nbytes()

    def _write_index(self) -> None:
        """Write model.safetensors.index.json, from which loaders know the file of each tensor."""
        weight_map = {name: path.name for path, names in zip(self.paths, self.shards, strict=True) for name in names}
        size = sum(spec.nbytes() for spec in self.specs.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def split_into_shards(specs: Mapping[str, Spec], shard_bytes: int) -> Iterable[list[str]]:
    """The names of the tensors of each file, in the order of `specs`."""
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.nbytes() > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += spec.nbytes()
    yield names
