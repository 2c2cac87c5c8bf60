"""Safetensors files that are written in pieces, in any order, by several threads."""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from nestling.files import named
from nestling.merging.sources import DTYPES, Spec

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor goes.

    Args:
        path: Its file.
        descriptor: The same, open.
        offset: Where the tensor begins in it, in bytes.
        dtype: In which it is written.
    """

    path: Path
    descriptor: int
    offset: int
    dtype: torch.dtype


class TensorFiles:
    """`model.safetensors`, or shards of it and their index: headers first, then pieces of the tensors.

    Args:
        folder: Where to write.
        specs: The tensors, each in the dtype that it is to have.
        shard_bytes: A file holds no more, unless a tensor is larger than that.
    """

    def __init__(self, folder: Path, specs: Mapping[str, Spec], shard_bytes: int) -> None:
        self.folder = folder
        self.shards = list(in_shards(specs, shard_bytes))
        self.specs = specs
        self._open = ExitStack()
        self._places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        with self._open as undo:
            for path, names in zip(self.paths, self.shards, strict=True):
                self._begin(path, names)
            if len(self.shards) > 1:
                self._write_index()
            self._open = undo.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    @property
    def paths(self) -> list[Path]:
        """The files."""
        count = len(self.shards)
        if count == 1:
            return [self.folder / "model.safetensors"]
        return [self.folder / f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write a piece of the flat tensor, rounded once.

        Raises:
            ValueError: A number is too large for float16.
        """
        place = self._places[name]
        ready = values.to(place.dtype)
        if place.dtype == torch.float16 and not ready.isfinite().all():
            raise ValueError(f"{name} has numbers that are too large for float16; write bfloat16 or float32")
        data = ready.view(torch.uint8).numpy().data
        offset = place.offset + start * place.dtype.itemsize
        with named(place.path):
            while data:
                done = os.pwrite(place.descriptor, data, offset)
                data, offset = data[done:], offset + done

    def _begin(self, path: Path, names: Iterable[str]) -> None:
        """Write the header of a file and give it its size."""
        # Larger elements first, as the library orders them, so that each tensor begins at a multiple of their size.
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
            file = self._open.enter_context(path.open("wb"))
            file.write(struct.pack("<Q", len(text)) + text)
            file.flush()
            os.truncate(file.fileno(), 8 + len(text) + end)
        offset = 8 + len(text)
        for name in ordered:
            self._places[name] = Place(path, file.fileno(), offset, self.specs[name].dtype)
            offset += self.specs[name].nbytes()

    def _write_index(self) -> None:
        places = {name: path.name for path, names in zip(self.paths, self.shards, strict=True) for name in names}
        size = sum(spec.nbytes() for spec in self.specs.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def in_shards(specs: Mapping[str, Spec], shard_bytes: int) -> Iterable[list[str]]:
    """Names of the tensors of each file, in their order."""
    names: list[str] = []
    size = 0
    for name, spec in specs.items():
        if names and size + spec.nbytes() > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += spec.nbytes()
    yield names
