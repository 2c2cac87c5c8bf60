"""Which file of a model is damaged, where a library fails to load a part of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Literal

import torch

from nestling.disk_errors import find_write_error
from nestling.models.json_files import FETCH, read_object
from nestling.models.weights import ADAPTER, model_file, open_safetensors, read_pickle, weight_files

Part = Literal["configuration", "tokenizer", "weights", "tokenizer and weights", "adapter"]

# The JSON files of each part, which hold objects.
FILES: dict[Part, tuple[str, ...]] = {
    "configuration": ("config.json",),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "weights": ("config.json",),
    "tokenizer and weights": ("config.json", "tokenizer.json", "tokenizer_config.json"),
    "adapter": ("adapter_config.json",),
}


@contextmanager
def loading(model: str | Path, part: Part, subfolder: str = "") -> Iterator[None]:
    """A context in which a library loads a part of a directory or hub id.

    Raises:
        ValueError: It could not, for whatever reason but a lack of memory or disk space. The message names the file
            that is damaged, or the part if none is found.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or find_write_error(error) is not None:
            raise
        find_damage(str(model), part, subfolder)
        reason = shorten(str(error), 400, placeholder=" …")
        files = " and ".join(FILES[part][:2])  # the others are rare
        raise ValueError(
            f"{model}: its {part} ({files}) cannot be loaded: {type(error).__name__}: {reason}; {FETCH}"
        ) from error


def find_damage(model: str, part: Part, subfolder: str = "") -> None:
    """Raise ValueError, with its name, for the first damaged file of a part of a model."""
    for name in FILES[part]:
        read_object(model, str(Path(subfolder, name)))
    if part in ("weights", "tokenizer and weights"):
        for path in weight_files(model, subfolder, local_files_only=True):
            read_pickle(path) if path.suffix == ".bin" else open_safetensors(path)
    if part == "adapter":
        stored = model_file(model, ADAPTER, local_files_only=True)
        if stored is None:
            raise ValueError(f"{model}: no {ADAPTER}; {FETCH}")
        open_safetensors(stored)
