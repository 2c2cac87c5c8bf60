"""The settings that a run left in its folder."""

from pathlib import Path

from nestling.config.arguments import parse_config
from nestling.config.checks import require
from nestling.config.embed import EmbedConfig
from nestling.config.rerank import RerankConfig
from nestling.config.yaml_files import read_yaml


def read_run(folder: Path) -> EmbedConfig | RerankConfig:
    """Of the recipe that began it, told by what only rerankers have."""
    path = folder / "config.yaml"
    require(
        path.is_file(),
        f"{folder} has no config.yaml; expected a run's folder, and RUN/checkpoints/step-N of a step",
    )
    arguments = ["--config", str(path)]
    if "prefix" in (read_yaml(path) or {}):
        return parse_config(RerankConfig, None, arguments)
    return parse_config(EmbedConfig, None, arguments)
