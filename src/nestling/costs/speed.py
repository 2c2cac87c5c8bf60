"""The share of a GPU's published speed that a stage reaches, by a model of what its layers read, write and compute."""

import json
from dataclasses import asdict
from functools import cache

from nestling.config import MineConfig
from nestling.config.costs import GpuName, LaunchCosts, StageCosts
from nestling.costs.layer_traffic import layer_traffic
from nestling.costs.model_configs import model_config_of
from nestling.costs.recipes import read_recipe
from nestling.costs.stage import CHUNK_POSITIONS, StageEstimate, model_of
from nestling.costs.traffic import NONE, ROOFLINES, Traffic


def share_of_peak(stage: StageCosts, launch: LaunchCosts, estimate: StageEstimate, gpu: GpuName) -> float:
    """Of the operations that the estimate counts, those of repeated forward passes among them; in bfloat16."""
    config = read_recipe(stage.script, stage.path)
    with_adapters = not isinstance(config, MineConfig) and (launch.tuning or config.tuning) == "lora"
    adapters = json.dumps(asdict(config.lora) if with_adapters else None)
    forward, backward = cached_traffic(model_of(config, stage), adapters, round(max(1.0, estimate.length)))
    return ROOFLINES[gpu].share(
        forward, backward if estimate.backward else NONE, forwards=estimate.forwards, counted=estimate.forwards
    )


@cache
def cached_traffic(model: str, adapters: str, length: int) -> tuple[Traffic, Traffic]:
    """As `layer_traffic`, of the model of a name and adapters in JSON."""
    shape = model_config_of(model)
    return layer_traffic(shape, lora=json.loads(adapters), length=length, positions=CHUNK_POSITIONS)
