"""Merges compared with mergekit's.

pip install --no-deps mergekit==0.1.5 immutables
pytest -m slow tests/merging
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merging.in_memory import equal_recipe, recipe
from nestling.config.merge_methods import WITH_BASE, Recipe
from nestling.merging.inputs import Inputs
from nestling.merging.merge import write_merged
from nestling.merging.models import open_model
from nestling.models.weights import StoredWeights, write_weights
from tiny import tiny_qwen3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models whose changes have a part in common: where changes oppose, model stocks differ."""
    folders = [tmp_path_factory.mktemp("model") for _ in range(4)]
    for folder in folders:
        tiny_qwen3(folder, sentence_transformers=False)
    base = dict(StoredWeights(str(folders[0])))
    torch.manual_seed(1)
    shared = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    for folder in folders[1:]:
        (folder / "model.safetensors").unlink()
        moved = {n: each + 0.1 * shared[n] + 0.05 * torch.randn_like(each) for n, each in base.items()}
        write_weights(moved, folder)
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


def with_parameters(models: list[Path], *parameters: dict[str, float]) -> list[dict[str, Any]]:
    return [{"model": str(m), "parameters": each} for m, each in zip(models, parameters, strict=True)]


WEIGHTS = (0.5, 0.3, 0.4)


def merges_of_models(models: list[Path]) -> dict[str, tuple[dict[str, Any], Recipe]]:
    """mergekit's settings and our recipe for each method without a base."""
    plain = with_parameters(models, {}, {}, {})
    weighted = with_parameters(models, *({"weight": weight} for weight in WEIGHTS))
    first = str(models[0])
    slerp = {"models": plain[:2], "base_model": first, "parameters": {"t": 0.3}}
    return {
        "linear": ({"models": weighted}, recipe("linear", *WEIGHTS)),
        "slerp": (slerp, recipe("slerp", 0.7, 0.3)),
        "karcher": ({"models": plain, "parameters": {"max_iter": 100, "tol": 1e-8}}, equal_recipe("karcher", 3)),
    }


def merges_of_changes(models: list[Path], base: Path) -> dict[str, tuple[dict[str, Any], Recipe]]:
    """mergekit's settings and our recipe for each method with a base."""
    plain = with_parameters(models, {}, {}, {})
    weighted = with_parameters(models, *({"weight": weight} for weight in WEIGHTS))
    sparse = with_parameters(models, *({"weight": weight, "density": 0.4} for weight in WEIGHTS))
    with_base = {"base_model": str(base)}
    return {
        "task_arithmetic": (
            {"models": weighted, **with_base, "parameters": {"lambda": 0.9}},
            recipe("task_arithmetic", *WEIGHTS, scale=0.9),
        ),
        "ties": (
            {"models": sparse, **with_base, "parameters": {"lambda": 1.1}},
            recipe("ties", *WEIGHTS, density=0.4, scale=1.1),
        ),
        "model_stock": ({"models": plain, **with_base}, equal_recipe("model_stock", 3)),
    }


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher", "task_arithmetic", "ties", "model_stock"])
def test_a_merge_is_mergekits(tmp_path: Path, models: list[Path], method: str) -> None:
    base, *others = models
    settings, how = (merges_of_models(others) | merges_of_changes(others, base))[method]
    expected = by_mergekit({"merge_method": method, "dtype": "float32", **settings}, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    sources = [open_model(str(each)) for each in others[: len(how.weights.models)]]
    inputs = Inputs.of(sources, open_model(str(base)) if method in WITH_BASE else None)
    write_merged(inputs, how, tmp_path / "ours")
    actual = StoredWeights(str(tmp_path / "ours"))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-6, atol=1e-6)
