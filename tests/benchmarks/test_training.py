"""scripts/bench/training.py: our side has the peer's settings."""

import importlib.util
import sys
from pathlib import Path

import pytest

from nestling.config import EmbedConfig, parse_config

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.mark.parametrize(("ours", "precision"), [("", "fp32"), ("--precision=bf16 --learning_rate=2e-4", "bf16")])
def test_precision_is_the_peers_unless_it_is_said(
    ours: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location(
        "bench_training", BENCH / "training.py"
    )  # tests/training has the name
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_training", bench)  # where dataclasses look
    spec.loader.exec_module(bench)
    config = bench.TrainingBenchConfig(data="data", model="model", output=str(tmp_path / "new"), ours=ours)
    script, *flags = bench.our_command(config)
    assert script == "train/embed.py"
    recipe = parse_config(EmbedConfig, None, flags)
    assert (recipe.precision, recipe.batch_size, recipe.matryoshka_dims) == (precision, 64, [384, 128, 64, 32])
    assert recipe.learning_rate == (2e-4 if ours else 1e-4)
