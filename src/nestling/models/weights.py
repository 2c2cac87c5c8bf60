"""Writing and reading a model's weights one tensor at a time, so that memory never holds a second copy of the model."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from nestling.models.json_files import FETCH, parse_object, value_of
from nestling.models.safetensors_writer import SafetensorsWriter, Spec

SHARD_BYTES = 5 * 10**9
ADAPTER = "adapter_model.safetensors"  # what peft writes


def write_weights(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    specs: Mapping[str, Spec] | None = None,
    prefix: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors into `folder`: one file, or shards of at most about `shard_bytes` with an index.

    Each tensor is accessed, written and dropped before the next.

    Args:
        weights: Tensors by name.
        folder: Where to write.
        specs: Of each tensor, where they are known without it; by default each tensor is accessed for its own.
        prefix: Put before every name.
        shard_bytes: Size of a shard.
    """
    known = specs or {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    with SafetensorsWriter(folder, {f"{prefix}{name}": spec for name, spec in known.items()}, shard_bytes) as files:
        for name in known:
            files.write(f"{prefix}{name}", 0, weights[name].detach().cpu().contiguous().view(-1))


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a model, a directory or a hub id in the cache; a tensor is read from disk when it is accessed.

    The hub is not asked: it may have other weights by now than those that were loaded.

    Args:
        model: Directory or hub id.
        subfolder: Folder of the transformer inside it.

    Raises:
        ValueError: The model has no weights.
    """

    def __init__(self, model: str, subfolder: str = "") -> None:
        self._pickled: dict[str, Tensor] = {}
        self._files: dict[str, Any] = {}  # the open safetensors file of each tensor
        for path in weight_files(model, subfolder, local_files_only=True):
            if path.suffix == ".bin":
                self._pickled |= read_pickle(path)
            else:
                opened: Any = open_safetensors(path)
                self._files |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pickled:
            return self._pickled[name]
        return cast(Tensor, self._files[name].get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter([*self._files, *self._pickled])

    def __len__(self) -> int:
        return len(self._files) + len(self._pickled)


def model_file(model: str, name: str, subfolder: str = "", *, local_files_only: bool = False) -> Path | None:
    """The path of a file of a model directory or hub id; None if it does not exist, locally if that is asked."""
    path = cached_file(
        model,
        name,
        subfolder=subfolder,
        local_files_only=local_files_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def weight_files(model: str, subfolder: str = "", *, local_files_only: bool = False) -> list[Path]:
    """The files that hold a model's weights: safetensors, or pickles if there are none."""
    find = partial(model_file, model, subfolder=subfolder, local_files_only=local_files_only)
    for name in ("model.safetensors", "pytorch_model.bin"):
        single = find(name)
        if single is not None:
            return [single]
        index = find(f"{name}.index.json")
        if index is not None:
            return shards_of(index, find)
    place = f"{model}/{subfolder}" if subfolder else model
    raise ValueError(f"{place}: no weights; expected model.safetensors, pytorch_model.bin or either in shards")


def shards_of(index: Path, find: Callable[[str], Path | None]) -> list[Path]:
    """The files that an index of shards names; `find` gives the path of a name, None if there is no such file.

    Raises:
        ValueError: It is no such index, or a file does not exist.
    """
    names = value_of(index, parse_object(index), "weight_map", dict) or {}
    if not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: weight_map names no files; {FETCH}")
    shards = {name: find(name) for name in sorted(set(names.values()))}
    missing = [name for name, path in shards.items() if path is None]
    if missing:
        raise ValueError(f"{index}: names {', '.join(missing[:3])}, which is not there; {FETCH}")
    return [path for path in shards.values() if path is not None]


def open_safetensors(path: Path) -> Any:
    """An open safetensors file. Raises ValueError, with its name, if it is damaged."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); {FETCH}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, memory-mapped. Raises ValueError, with its name, if it is damaged or holds other things.

    Those could run any code when they are loaded.
    """
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, ValueError, EOFError, OSError, LookupError) as error:
        reason = "it holds other things than tensors" if isinstance(error, UnpicklingError) else "it is damaged"
        raise ValueError(f"{path} is not loaded: {reason}; use a model with safetensors files") from None
    return tensors
