"""Writing and reading a model's weights one tensor at a time, so that memory never holds a second copy of the model."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils.hub import cached_file

SHARD_BYTES = 5 * 10**9


def write_weights(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    prefix: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors into `folder`: one file, or shards of at most about `shard_bytes` with an index.

    At most one shard is held in memory.

    Args:
        weights: Tensors by name.
        folder: Where to write.
        prefix: Put before every name.
        shard_bytes: Size of a shard.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0
    for name, tensor in weights.items():
        ready = tensor.detach().cpu().contiguous()
        if pending and sum(each.nbytes for each in pending.values()) + ready.nbytes > shard_bytes:
            shards.append(_write_shard(pending, folder, len(shards)))
            pending = {}
        pending[f"{prefix}{name}"] = ready
        total += ready.nbytes
    shards.append(_write_shard(pending, folder, len(shards)))
    _name_shards(folder, shards, total)


def _write_shard(tensors: dict[str, Tensor], folder: Path, number: int) -> list[str]:
    save_file(tensors, folder / f"shard-{number}", metadata={"format": "pt"})
    return list(tensors)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    """Rename the shards, whose number is known only now, to transformers' file names, and write their index."""
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


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
                self._pickled |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            else:
                opened: Any = safe_open(path, framework="pt")
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
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = [find(file) for file in sorted(set(weight_map.values()))]
            if all(shards):
                return [path for path in shards if path is not None]
            raise ValueError(f"{model}: {index.name} names files that do not exist")
    raise ValueError(f"{model}: no weights; expected model.safetensors, pytorch_model.bin or either in shards")
