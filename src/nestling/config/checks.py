"""Conditions on settings, with errors for users."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


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
