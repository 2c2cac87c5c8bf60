"""Code that comes with a model: Python files that its JSON files name under auto_map.

It runs only for models that the user has trusted, by `--trust_remote_code true`. Trust is of the whole process: what
loads a model asks `is_trusted`, and every command trusts its models before it reads any of their files.
"""

import hashlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import get_relative_imports

from nestling.console import say
from nestling.models.json_files import read_object
from nestling.models.weights import model_file

# What a model is given.
ARGUMENTS = frozenset({"inputs_embeds", "attention_mask"})
FLAG = "--trust_remote_code true"
NAMED_IN = ("config.json", "tokenizer_config.json")

_trusted: set[str] = set()


def trust_code(*models: str | Path | None) -> None:
    """Trust the code of some models, because the user said so, and print each file of it with its hash."""
    for model in models:
        if model is not None and str(model) not in _trusted:
            _trusted.add(str(model))
            for name, digest in code_hashes(str(model)).items():
                if os.environ.get("RANK", "0") == "0":
                    say(f"{model}: its own code is run: {name}, sha256 {digest}")


def trust_copy(directory: Path, original: str) -> None:
    """Trust a directory whose code was copied from a model, if that is trusted."""
    if is_trusted(original):
        _trusted.add(str(directory))


def is_trusted(model: str | Path) -> bool:
    """Whether the code of a model may run."""
    return str(model) in _trusted


def code_files(model: str, subfolder: str = "") -> dict[str, Path]:
    """The Python files that the JSON files of a directory or hub id name, and those that these import, by name.

    Raises:
        ValueError: One of them is not there.
    """
    found: dict[str, Path] = {}
    for source, name in named_modules(model, subfolder):
        add_file(found, source, f"{name}.py")
    return found


def named_modules(model: str, subfolder: str = "") -> Iterator[tuple[str, str]]:
    """Directory or hub id, and module, of each class under auto_map."""
    for file in NAMED_IN:
        for reference in references(read_object(model, str(Path(subfolder, file)))):
            source, _, name = reference.rpartition("--")
            yield source or model, name.rpartition(".")[0]


def references(config: Mapping[str, Any]) -> list[str]:
    """The classes under auto_map, such as "modeling.Model" or "owner/name--modeling.Model"."""
    named = config.get("auto_map")
    values = named.values() if isinstance(named, dict) else []
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [each for each in flat if isinstance(each, str)]


def add_file(found: dict[str, Path], source: str, name: str) -> None:
    """Add a file, and those beside it that it imports."""
    if name in found:
        return
    path = model_file(source, name) if re.fullmatch(r"[\w/]+\.py", name) else None
    if path is None:
        raise ValueError(f"{source}: no file {name}, which auto_map names or its code imports; fetch the model again")
    found[name] = path
    for imported in get_relative_imports(path):
        add_file(found, source, f"{Path(name).parent / imported}.py")


def code_hashes(model: str, subfolder: str = "") -> dict[str, str]:
    """The sha256 of each file of `code_files`."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in code_files(model, subfolder).items()}


def require_trust(model: str, subfolder: str = "") -> None:
    """Raise ValueError for a model whose type transformers does not know, and whose code nobody has trusted.

    Of a known type transformers' own class is used without trust; that is said once.
    """
    config = read_object(model, str(Path(subfolder, "config.json")))
    named = references(config)
    if not named or is_trusted(model):
        return
    kind, file = config.get("model_type"), named[0].rpartition(".")[0] + ".py"
    if kind not in known_types():
        raise ValueError(
            f"{model}: its model_type {kind!r} is none of transformers', and its code in {file} is not run unasked; "
            f"read that, and give {FLAG}"
        )
    say_once(f"{model}: its code in {file} is not run, transformers' own {kind} is; {FLAG} runs it")


@cache
def known_types() -> frozenset[str]:
    """The model types that transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return frozenset(CONFIG_MAPPING_NAMES)


@cache
def say_once(text: str) -> None:
    say(text)


def local_references(config: Mapping[str, Any]) -> dict[str, Any]:
    """auto_map with the files beside the config: without the ids of other repositories."""

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(each) for each in value]
        return value.rpartition("--")[2] if isinstance(value, str) else value

    return {name: local(value) for name, value in config["auto_map"].items()}


def require_arguments(model: str | Path, backbone: nn.Module) -> None:
    """Raise ValueError for a class of a model's own code that does not take token embeddings and a mask."""
    if not is_trusted(model):
        return
    lacking = ARGUMENTS - inspect.signature(backbone.forward).parameters.keys()
    if lacking:
        raise ValueError(
            f"{model}: its own class {type(backbone).__name__} takes no {' and no '.join(sorted(lacking))}, which "
            "Nestling gives a model; it cannot be trained here"
        )
