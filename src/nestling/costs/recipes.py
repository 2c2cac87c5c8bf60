"""The settings of recipes in YAML files, read by the dataclass of their script."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nestling.config import EmbedConfig, MineConfig, RerankConfig, read_section, require
from nestling.config.arguments import known_keys
from nestling.config.costs import ScriptName
from nestling.config.yaml_files import read_yaml

CONFIGS: dict[ScriptName, type] = {"embed": EmbedConfig, "rerank": RerankConfig, "mine": MineConfig}


@cache
def read_recipe(script: ScriptName | None, path: str) -> Any:
    """Read the settings of a recipe; without a script, that script is used whose settings match the keys best.

    Raises:
        ValueError: There is no such file, its keys match two scripts equally, or the settings are invalid.
    """
    require(Path(path).is_file(), f"{path}: no such file; expected the YAML of a recipe")
    settings = read_yaml(Path(path))
    require(isinstance(settings, dict), f"{path}: expected keys with values, as a recipe has them")
    script = script or script_of(path, settings)
    return read_section(f"{path}, read as {script}", CONFIGS[script], settings)


def script_of(path: str, settings: Mapping[str, object]) -> ScriptName:
    """The script with the fewest unknown keys, so that a misspelt key does not decide. Raises ValueError for a tie."""
    keys = set(dotted_keys(settings))
    unknown = {script: len(keys - set(known_keys(cls))) for script, cls in CONFIGS.items()}
    fewest = [script for script, count in unknown.items() if count == min(unknown.values())]
    require(len(fewest) == 1, f"{path}: {' and '.join(fewest)} match its keys equally; set the script of the stage")
    return fewest[0]


def dotted_keys(settings: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the names of all keys, nested ones with dots, as `known_keys` does."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from dotted_keys(inner, f"{prefix}{key}.")
