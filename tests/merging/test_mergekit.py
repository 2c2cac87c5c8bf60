"""The same merges by mergekit: pip install --no-deps mergekit==0.1.5 immutables; pytest -m slow tests/merging"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merging.in_memory import equal_recipe, recipe
from nestling.config.merge_methods import Recipe
from nestling.merging.inputs import Inputs
from nestling.merging.merge import write_merged
from nestling.merging.models import open_model
from nestling.models.weights import StoredWeights, write_weights
from tiny import tiny_qwen3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models that moved away from it together and apart: where changes oppose, model stock differs."""
    folders = [tmp_path_factory.mktemp("model") for _ in range(4)]
    for folder in folders:
        tiny_qwen3(folder, sentence_transformers=False)
    base = dict(StoredWeights(str(folders[0])))
    torch.manual_seed(1)
    shared = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    for folder in folders[1:]:
        (folder / "model.safetensors").unlink()
        moved = {n: each + 0.1 * shared[n] + 0.05 * torch.randn_like(each) for n, each in base.items()}
        write_weights(moved, folder, dtype=torch.float32)
    return folders


def by_mergekit(settings: dict[str, Any], output: Path) -> StoredWeights:
    pytest.importorskip("mergekit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import MergeOptions, run_merge

        configuration = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(settings)))
        run_merge(configuration, str(output), MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
    return StoredWeights(str(output))


def given(models: list[Path], *parameters: dict[str, float]) -> list[dict[str, Any]]:
    return [{"model": str(m), "parameters": each} for m, each in zip(models, parameters, strict=True)]


def settings_of(method: str, models: list[Path]) -> tuple[dict[str, Any], Recipe, int, bool]:
    """mergekit's settings and ours, of so many models, with or without their base."""
    base, *others = models
    weights = (0.5, 0.3, 0.4)
    plain = given(others, {}, {}, {})
    weighted = given(others, *({"weight": weight} for weight in weights))
    sparse = given(others, *({"weight": weight, "density": 0.4} for weight in weights))
    of = {
        "linear": ({"models": weighted}, recipe("linear", *weights), 3, False),
        "slerp": (
            {"models": plain[:2], "base_model": str(others[0]), "parameters": {"t": 0.3}},
            recipe("slerp", 0.7, 0.3),
            2,
            False,
        ),
        "karcher": (
            {"models": plain, "parameters": {"max_iter": 100, "tol": 1e-8}},
            equal_recipe("karcher", 3),
            3,
            False,
        ),
        "task_arithmetic": (
            {"models": weighted, "base_model": str(base), "parameters": {"lambda": 0.9}},
            recipe("task_arithmetic", *weights, scale=0.9),
            3,
            True,
        ),
        "ties": (
            {"models": sparse, "base_model": str(base), "parameters": {"lambda": 1.1}},
            recipe("ties", *weights, density=0.4, scale=1.1),
            3,
            True,
        ),
        "model_stock": (
            {"models": plain, "base_model": str(base)},
            equal_recipe("model_stock", 3),
            3,
            True,
        ),
    }
    return of[method]


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher", "task_arithmetic", "ties", "model_stock"])
def test_a_merge_is_mergekits(tmp_path: Path, models: list[Path], method: str) -> None:
    settings, how, count, with_base = settings_of(method, models)
    expected = by_mergekit({"merge_method": method, "dtype": "float32", **settings}, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    sources = [open_model(str(each)) for each in models[1 : 1 + count]]
    write_merged(Inputs.of(sources, open_model(str(models[0])) if with_base else None), how, tmp_path / "ours")
    found = StoredWeights(str(tmp_path / "ours"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
