"""Settings inside settings."""

import json
from collections.abc import Mapping


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """Settings as JSON and YAML hold them."""
    values: dict[str, object] = json.loads(json.dumps(config, default=str))
    return values


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested mappings and lists by dotted key (`train.0.path`)."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    if not items:
        return {prefix: value}
    return {
        key: leaf for name, item in items for key, leaf in flat(item, f"{prefix}.{name}" if prefix else name).items()
    }
