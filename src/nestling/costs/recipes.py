"""Recipes from their YAML files, each through the dataclass of the script that reads it."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nestling.config import EmbedConfig, MineConfig, RerankConfig, read_section, require
from nestling.config.arguments import known_keys
from nestling.config.costs import ScriptName

CONFIGS: dict[ScriptName, type] = {"embed": EmbedConfig, "rerank": RerankConfig, "mine": MineConfig}


@cache
def read_recipe(script: ScriptName | None, path: str) -> Any:
    """The settings of a file; where no script is given, of the one that its keys are of.

    Raises:
        ValueError: There is no such file, its keys are of two scripts alike, or the script would refuse it.
    """
    require(Path(path).is_file(), f"{path}: no such file; expected the YAML of a recipe")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    require(isinstance(settings, dict), f"{path}: expected keys with values, as a recipe has them")
    found = script or script_of(path, settings)
    return read_section(f"{path}, read as {found}", CONFIGS[found], settings)


def script_of(path: str, settings: Mapping[str, object]) -> ScriptName:
    """The script that knows most of the keys, so that a mistyped one is no other script's."""
    keys = set(dotted(settings))
    unknown = {script: len(keys - set(known_keys(cls))) for script, cls in CONFIGS.items()}
    fewest = [script for script, count in unknown.items() if count == min(unknown.values())]
    require(len(fewest) == 1, f"{path}: {' and '.join(fewest)} have its keys alike; give the stage a script")
    return fewest[0]


def dotted(settings: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Names of keys as `known_keys` has them."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from dotted(inner, f"{prefix}{key}.")
