"""Settings that need whole weights are refused at the start of real ranks that shard them."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
from launches import BACKENDS, free_port, join, start
from ranks import run_ranks

from nestling.config import EmbedConfig, LossConfig, TrainData
from nestling.training.whole_weights import require_whole_weights

SHARDED = ("zero3", "fsdp")


def test_a_share_and_regression_are_refused_where_weights_are_sharded(tmp_path: Path) -> None:
    """FSDP2 as configs/accelerate starts it, where every rank reads the weights."""
    run_ranks(2, partial(refused, free_port()), tmp_path)


def refused(port: int, rank: int, folder: Path) -> None:
    join(rank, 2, port)
    for backend in BACKENDS:
        if backend.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            continue
        accelerator = start(backend)
        data = [TrainData("rows.jsonl")]
        share = EmbedConfig(model="m", output_dir="o", train=data, interpolate=0.7)
        loss = LossConfig(teacher="t", regression_weight=1.0)
        regression = EmbedConfig(model="m", output_dir="o", train=data, loss=loss)
        require_whole_weights(EmbedConfig(model="m", output_dir="o", train=data), accelerator)
        for config, message in ((share, "interpolate: a share needs"), (regression, r"loss\.regression_weight: its")):
            if backend in SHARDED:
                with pytest.raises(ValueError, match=message):
                    require_whole_weights(config, accelerator)
            else:
                require_whole_weights(config, accelerator)
