"""Conditions on settings, with errors for users."""

import math
from dataclasses import MISSING, Field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_at_least(least: int, settings: object, *names: str, section: str = "") -> None:
    """Raise ValueError unless the settings of these names are None, or finite and `least` or more.

    `section` is what stands before the names in an error, such as "loss.".
    """
    for name in names:
        value = getattr(settings, name)
        require(value is None or least <= value < math.inf, f"{section}{name} is {value}, expected at least {least}")


def require_positive(settings: object, *names: str, section: str = "") -> None:
    """Raise ValueError unless the settings of these names are finite and above 0."""
    for name in names:
        value = getattr(settings, name)
        require(0 < value < math.inf, f"{section}{name} is {value:g}, expected a finite number above 0")


def require_share(settings: object, *names: str, section: str = "") -> None:
    """Raise ValueError unless the settings of these names are None, or above 0 and at most 1."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or 0 < value <= 1, f"{section}{name} is {value}, expected a share: above 0 and at most 1")


def changed(settings: Any, section: str) -> list[str]:
    """Names of the settings of a dataclass that do not have their defaults, with what stands before them."""
    defaults = {each.name: default_of(each) for each in fields(settings)}
    return [section + name for name, default in defaults.items() if getattr(settings, name) != default]


def default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def require_new(flag: str, path: str | Path | None) -> None:
    """Raise ValueError if a file to write, of a flag, exists or has no folder; None is no file."""
    if path is not None:
        require(not Path(path).exists(), f"{flag} {path} exists; choose another name or remove it")
        folder = Path(path).parent
        require(folder.is_dir(), f"{flag} {path}: the folder {folder} does not exist")


def require_model(model: str, message: str) -> None:
    """Raise ValueError for a file, and for a mistyped path at once; to ask the hub would take half a minute of retries.

    `message` is of a path that does not exist.
    """
    require(
        not model.endswith(".gguf"),
        f"{model} is a GGUF file, which is llama.cpp's and cannot be loaded here; expected the directory of the model "
        "that it was made from",
    )
    require(not Path(model).is_file(), f"{model} is a file; expected the directory of a model")
    parts = Path(model).parts
    hub_id = len(parts) == 1 or (len(parts) == 2 and not Path(parts[0]).exists())
    require(Path(model).is_dir() or hub_id, message)


def require_extra(purpose: str, extra: str, *modules: str) -> None:
    """Raise ValueError unless the modules of an extra, which a purpose needs, are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    require(
        not missing,
        f"{purpose} needs {', '.join(missing)}, not installed; pip install -c constraints.txt -e '.[{extra}]'",
    )


def require_address(name: str, url: str) -> None:
    """Raise ValueError unless a setting is the address of a server without what may be secret, which is not shown."""
    require(
        "@" not in url and "?" not in url,
        f"{name}: expected an address without user name, password and query; the name of the environment variable with "
        "the key goes into api_key_env",
    )
    require(
        url.startswith(("http://", "https://")),
        f"{name}: {url!r} is not an address; expected something like http://localhost:8000",
    )


def require_unique(what: str, names: list[str]) -> None:
    """Raise ValueError if two datasets bear the same name, under which one's results would hide the other's."""
    for name in names:
        require(names.count(name) == 1, f"{what}: two datasets are called {name!r}; give each a name of its own")


def require_dims(dims: list[int], limit: int | None = None, name: str = "dims") -> None:
    """Raise ValueError unless `dims` are positive, different and at most `limit`, the width of the model."""
    for dim in dims:
        require(dim > 0, f"{name}: {dim} is not a dimension; expected whole numbers above 0")
        require(dims.count(dim) == 1, f"{name}: {dim} is given {dims.count(dim)} times; name each dimension once")
        if limit is not None:
            require(dim <= limit, f"{name}: {dim} is more than the model's embedding has, {limit}")
