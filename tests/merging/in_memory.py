"""Small models in memory, from which tests merge without files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nestling.config.merge_methods import Method, Recipe, Weights, equal_weights
from nestling.merging.inputs import Inputs
from nestling.merging.merge import merge
from nestling.merging.workers import BLOCK_SIZE
from nestling.models.safetensors_writer import Spec

# Fewer elements than a block, exactly one block, and more than a slice with a remainder; a bias; a single element.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed.weight": (700, 301),
    "layers.0.weight": (40, 33),
    "layers.0.bias": (33,),
    "layers.1.weight": (256, 256),
    "norm.weight": (1,),
}


@dataclass(frozen=True)
class MemoryTensors:
    """A source whose tensors are in memory."""

    label: str
    tensors: dict[str, Tensor]

    @property
    def specs(self) -> dict[str, Spec]:
        return {name: Spec(tuple(each.shape), each.dtype) for name, each in self.tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name].view(-1)[start:stop]


def random_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def near(tensors: Mapping[str, Tensor], seed: int, distance: float = 0.5) -> dict[str, Tensor]:
    """The tensors with random changes, as training might have made them."""
    moved = random_tensors(seed)
    return {name: (each.float() + distance * moved[name]).to(each.dtype) for name, each in tensors.items()}


def family(count: int, *, dtype: torch.dtype = torch.float32) -> tuple[MemoryTensors, list[MemoryTensors]]:
    """A base, and models with random changes to it."""
    base = random_tensors(0, dtype)
    return MemoryTensors("base", base), [MemoryTensors(f"model {i}", near(base, seed=i)) for i in range(1, count + 1)]


def recipe(method: Method, *weights: float, **settings: float) -> Recipe:
    return Recipe(method, Weights(weights), **settings)  # type: ignore[arg-type]


def equal_recipe(method: Method, models: int, **settings: float) -> Recipe:
    return Recipe(method, equal_weights(models), **settings)  # type: ignore[arg-type]


def merged(inputs: Inputs, how: Recipe, *, threads: int = 2, slice_size: int = 2 * BLOCK_SIZE) -> dict[str, Tensor]:
    """The merged tensors, float64, in their shapes."""
    flat = {name: torch.empty(spec.numel, dtype=torch.float64) for name, spec in inputs.specs.items()}

    def copy(name: str, start: int, values: Tensor) -> None:
        assert values.dtype == torch.float64
        flat[name][start : start + len(values)] = values

    merge(inputs, how, copy, list(flat), threads=threads, slice_size=slice_size)
    return {name: flat[name].view(spec.shape) for name, spec in inputs.specs.items()}


def save(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None) -> str:
    """Write a model directory with these weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {}))
    return str(folder)
