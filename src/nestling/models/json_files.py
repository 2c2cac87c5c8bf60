"""The JSON files of a model's directory or hub id, and the modules that sentence-transformers makes of it."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from transformers.utils import cached_file

FETCH = "fetch the model again"
Value = TypeVar("Value")
# What errors call the types of JSON.
KINDS = {int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "an object"}

# Full names of the modules of sentence-transformers: those of its releases before 6, then those since. Classes of
# other packages may have the same last name, and do something else.
KNOWN_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
MODULES = {
    **{f"sentence_transformers.models.{kind}": kind for kind in KNOWN_MODULES},
    **{f"sentence_transformers.models.{kind}.{kind}": kind for kind in KNOWN_MODULES},
    "sentence_transformers.base.modules.transformer.Transformer": "Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling": "Pooling",
    "sentence_transformers.base.modules.dense.Dense": "Dense",
    "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm": "LayerNorm",
    "sentence_transformers.sentence_transformer.modules.dropout.Dropout": "Dropout",
    "sentence_transformers.base.modules.normalize.Normalize": "Normalize",
    "sentence_transformers.cross_encoder.modules.logit_score.LogitScore": "LogitScore",
}


class Module(NamedTuple):
    """A module of modules.json: its kind, a last name in `MODULES`, and its folder, "" for the model's own."""

    kind: str
    folder: str


def read_json(model: str, name: str) -> Any:
    """The content of a JSON file of a directory or hub id; None if it does not exist.

    Raises:
        ValueError: It is not valid JSON.
    """
    path = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if path is None else parse_json(Path(path))


def read_object(model: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of a directory or hub id; an empty one if the file does not exist.

    Raises:
        ValueError: It is not valid JSON, or holds something else than an object.
    """
    content = read_json(model, name)
    return {} if content is None else require_object(f"{model}/{name}", content)


def parse_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, with its name, for anything else."""
    return require_object(path, parse_json(path))


def require_object(name: object, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected a JSON object, and it is a {type(content).__name__}; {FETCH}")
    return content


def parse_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError, with its name, if it is not valid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}; {FETCH}") from None


def value_of(name: object, content: Mapping[str, Any], key: str, kind: type[Value]) -> Value | None:
    """A value of an object of a JSON file, whose name is for errors; None if it is absent or null.

    Raises:
        ValueError: It is of another type than `kind`.
    """
    value = content.get(key)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ValueError(f"{name}: {key} is {value!r}, expected {KINDS[kind]}; {FETCH}")


def read_modules(model: str) -> list[Module] | None:
    """The modules in modules.json, in their order; None if there is no such file.

    Raises:
        ValueError: The file is no list of modules, names other classes, or a folder outside the model's.
    """
    modules = read_json(model, "modules.json")
    if modules is None:
        return None
    try:
        found = [(str(each["type"]), PurePosixPath(each["path"])) for each in modules]
    except (TypeError, KeyError):
        raise ValueError(f"{model}/modules.json: expected a list of modules, each with type and path") from None
    unsupported = sorted({name for name, _ in found} - MODULES.keys())
    if unsupported:
        raise ValueError(
            f"{model}/modules.json: {', '.join(unsupported)} is not supported; expected "
            f"{', '.join(KNOWN_MODULES[:-1])} and {KNOWN_MODULES[-1]} of sentence_transformers"
        )
    for _, path in found:
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{model}/modules.json: {path} lies outside the model's directory")
    return [Module(MODULES[name], "" if path == PurePosixPath() else str(path)) for name, path in found]


def has_module(model: str, kind: str) -> bool:
    """Whether modules.json names a module of this kind."""
    return any(each.kind == kind for each in read_modules(model) or [])
