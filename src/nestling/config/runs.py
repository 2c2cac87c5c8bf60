"""The settings that a run left in its folder."""

from pathlib import Path

import yaml

from nestling.config.arguments import parse_config
from nestling.config.checks import require
from nestling.config.embed import EmbedConfig
from nestling.config.rerank import RerankConfig


def read_run(folder: Path) -> EmbedConfig | RerankConfig:
    """Of the recipe that began it, told by what only rerankers have."""
    path = folder / "config.yaml"
    require(
        path.is_file(),
        f"{folder} has no config.yaml; expected a run's folder, and RUN/checkpoints/step-N of a step",
    )
    arguments = ["--config", str(path)]
    if "prefix" in yaml.safe_load(path.read_text(encoding="utf-8")):
        return parse_config(RerankConfig, None, arguments)
    return parse_config(EmbedConfig, None, arguments)
