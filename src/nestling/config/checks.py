"""Conditions on settings, with errors for users."""

from importlib.util import find_spec
from pathlib import Path


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_new(flag: str, path: str | Path | None) -> None:
    """Raise ValueError if a file to write, of a flag, exists or has no folder; None is no file."""
    if path is not None:
        require(not Path(path).exists(), f"{flag} {path} exists; choose another name or remove it")
        folder = Path(path).parent
        require(folder.is_dir(), f"{flag} {path}: the folder {folder} does not exist")


def require_model(model: str, message: str) -> None:
    """Raise ValueError for a mistyped path at once; to ask the hub for it would take half a minute of retries."""
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


def require_unique(what: str, names: list[str]) -> None:
    """Raise ValueError if two datasets bear the same name, under which one's results would hide the other's."""
    for name in names:
        require(names.count(name) == 1, f"{what}: two datasets are called {name!r}; give each a name of its own")


def require_dims(dims: list[int], limit: int | None = None) -> None:
    """Raise ValueError unless `dims` are positive, different and at most `limit`, the width of the model."""
    for dim in dims:
        require(dim > 0, f"dims: {dim} is not a dimension; expected whole numbers above 0")
        require(dims.count(dim) == 1, f"dims: {dim} is given {dims.count(dim)} times; name each dimension once")
        if limit is not None:
            require(dim <= limit, f"dims: {dim} is more than the model's embedding has, {limit}")
