"""Loading a part of a model by a library: an error names the file that is damaged, and weights are whole."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from nestling.console import working
from nestling.disk_errors import find_write_error
from nestling.distributed.ranks import rank_and_world
from nestling.models.json_files import FETCH, read_object
from nestling.models.weights import ADAPTER, model_file, open_safetensors, read_pickle, weight_files

# The number of a layer in the name of a weight.
LAYER = re.compile(r"\.\d+\.")

# Given the name of a weight, whether it need not be in a model's files.
MayLack = Callable[[str], bool]

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
        if lacks_memory(error) or find_write_error(error) is not None:
            raise
        find_damage(str(model), part, subfolder)
        reason = shorten(str(error), 400, placeholder=" …")
        if isinstance(error, ImportError):
            raise ValueError(f"{model}: loading its {part} takes a package that is not installed: {reason}") from error
        files = " and ".join(FILES[part][:2])  # the others are rare
        raise ValueError(
            f"{model}: its {part} ({files}) cannot be loaded: {type(error).__name__}: {reason}; {FETCH}"
        ) from error


def lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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


def is_pooler(name: str) -> bool:
    """Whether a weight is of the pooler of BERT and its kin."""
    return "pooler" in name.split(".")


def load_weights(
    auto_class: Any, model: str | Path, *, subfolder: str = "", may_lack: MayLack = is_pooler, **settings: Any
) -> PreTrainedModel:
    """Load a model with one of transformers' Auto classes, to which the settings go.

    Raises:
        ValueError: The weights are damaged, or not those that config.json asks for.
    """
    shown = rank_and_world()[0] == 0
    with loading(model, "weights", subfolder), working(f"loading the weights of {model}", shown=shown):
        loaded, info = auto_class.from_pretrained(
            model, subfolder=subfolder, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    require_same_weights(model, loaded, info, may_lack)
    return cast(PreTrainedModel, loaded)


def require_same_weights(
    model: str | Path, loaded: nn.Module, info: Mapping[str, Any], may_lack: MayLack = is_pooler
) -> None:
    """Raise ValueError unless the weights in a model's files are those that its config.json asks for.

    transformers puts random ones for missing ones and for those of another shape, and leaves further layers away.
    Files may hold other heads.

    Args:
        model: Directory or hub id.
        loaded: The transformers model.
        info: What transformers says of loading it.
        may_lack: Which may be missing; a pooler by default, which embedders do not use.
    """
    missing = sorted(name for name in info["missing_keys"] if not may_lack(name))
    shapes = [f"{name} is {list(found)}, expected {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    layers = {LAYER.sub(".N.", name) for name, _ in loaded.named_parameters()}
    further = sorted(name for name in info["unexpected_keys"] if LAYER.sub(".N.", name) in layers)
    problems = {"lacks": missing, "has in another shape": sorted(shapes), "has more layers": further}
    for problem, names in problems.items():
        if names:
            listed = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
            raise ValueError(f"{model}: not the weights that its config.json asks for: it {problem}: {listed}; {FETCH}")
