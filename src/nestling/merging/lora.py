"""Models with a LoRA adapter (arXiv 2106.09685) merged in: W + scaling B A in float32, a few rows of W at a time."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling.merging.names import names_in_base
from nestling.merging.sources import Source, open_weights, stored_tensors
from nestling.models.adapters import require_same_rows
from nestling.models.json_files import FETCH, parse_object, read_object, value_of
from nestling.models.safetensors_writer import Spec
from nestling.models.weights import ADAPTER, model_file

# B A is computed for a few rows of W at a time, which have about this many elements. The rows are grouped in the same
# way for any slice: a product of more or fewer rows may be added up in another order, and so be rounded differently.
PRODUCT_SIZE = 2**16

FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight")

# Settings of adapter_config.json with which the weights are not W + scaling B A on the linear layers of the base.
UNSUPPORTED_SETTINGS = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# Values of init_lora_weights for which peft leaves the base as it is; others, such as pissa, change its weights.
INITS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LoraFactors:
    """The LoRA factors of a weight.

    Args:
        a: Name of A.
        b: Name of B.
        scaling: What B A is multiplied by, as peft calls it.
    """

    a: str
    b: str
    scaling: float


@dataclass(frozen=True)
class LoraTensors:
    """A base with a LoRA adapter merged in.

    Args:
        label: What errors and reports call the model.
        base: Gives W [rows, columns].
        adapter: Gives A [r, columns] and B [rows, r] of each adapted layer.
        factors: Of each weight of the base that is adapted, by its name.
    """

    label: str
    base: Source
    adapter: Source
    factors: Mapping[str, LoraFactors]

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.base.specs

    def read(self, name: str, start: int, stop: int) -> Tensor:
        values = self.base.read(name, start, stop)
        if name not in self.factors or start >= stop:
            return values
        factors, (rows, columns) = self.factors[name], self.specs[name].shape
        rank = self.adapter.specs[factors.a].shape[0]
        a = self.adapter.read(factors.a, 0, rank * columns).view(rank, columns).float()
        merged = values.to(torch.float32, copy=True)
        step = max(1, PRODUCT_SIZE // columns)
        for top in range(start // columns // step * step, -(-stop // columns), step):
            bottom = min(top + step, rows)
            b = self.adapter.read(factors.b, top * rank, bottom * rank).view(-1, rank).float()
            first, last = max(start, top * columns), min(stop, bottom * columns)
            change = (factors.scaling * (b @ a)).view(-1)[first - top * columns : last - top * columns]
            merged[first - start : last - start] += change
        return merged


def with_lora(label: str, base: Source, adapter: Source, scaling: Callable[[str, int], float]) -> LoraTensors:
    """Merge an adapter into its base.

    Args:
        label: What errors and reports call the merged model.
        base: The model that the adapter was trained on.
        adapter: LoRA factors and no other tensors.
        scaling: Gives a layer's scaling from its name and its rank.

    Raises:
        ValueError: The adapter is not one matrix A and one matrix B for each of some linear layers of the base.
    """
    layers = factor_names(label, adapter)
    names = names_in_base([f"{layer}.weight" for layer in layers], base.specs, label, base.label)
    factors: dict[str, LoraFactors] = {}
    for layer, (a, b) in layers.items():
        name = names[f"{layer}.weight"]
        a_shape, b_shape = adapter.specs[a].shape, adapter.specs[b].shape
        if [len(a_shape), len(b_shape)] != [2, 2] or base.specs[name].shape != (b_shape[0], a_shape[1]):
            raise ValueError(
                f"{label}: {layer} has factors of {list(b_shape)} and {list(a_shape)}, and {name} of {base.label} is "
                f"{list(base.specs[name].shape)}; expected plain LoRA on linear layers"
            )
        factors[name] = LoraFactors(a, b, scaling(layer, a_shape[0]))
    return LoraTensors(label, base, adapter, factors)


def factor_names(label: str, adapter: Source) -> dict[str, tuple[str, str]]:
    """The names of A and B of each layer, by the layer's name."""
    names: dict[str, dict[str, str]] = {}
    for name in adapter.specs:
        match = FACTOR.fullmatch(name)
        if match is None:
            raise ValueError(f"{label}: {name} is no factor of a linear layer; expected plain LoRA")
        names.setdefault(match["layer"], {})[match["factor"]] = name
    for layer, of_layer in names.items():
        if len(of_layer) < 2:
            raise ValueError(f"{label}: {layer} has one factor instead of two; {FETCH}")
    return {layer: (of_layer["A"], of_layer["B"]) for layer, of_layer in names.items()}


def is_lora_factor(name: str) -> bool:
    """Whether this is the name of a LoRA factor, A or B."""
    return FACTOR.fullmatch(name) is not None


def open_adapter(adapter: str, base: str | None = None, subfolder: str = "") -> LoraTensors:
    """Open a peft adapter on its base.

    Args:
        adapter: Directory or hub id of the adapter.
        base: Directory or hub id of the base; by default the one that the adapter names.
        subfolder: Folder of the base that has its transformer.

    Raises:
        ValueError: The adapter is not plain LoRA, or not of this base.
    """
    path = model_file(adapter, "adapter_config.json")
    if path is None:
        raise ValueError(f"{adapter} has no adapter_config.json; expected an adapter that peft wrote")
    config = parse_object(path)
    for reason in unsupported_settings(config):
        raise ValueError(f"{adapter}: {reason}; expected plain LoRA, whose weights are W + scale B A")
    weights = model_file(adapter, ADAPTER)
    if weights is None:
        raise ValueError(f"{adapter}: no {ADAPTER}; save it again with a recent peft")
    require_numbers(f"{path}: lora_alpha", [config.get("lora_alpha")])
    patterns = value_of(path, config, "alpha_pattern", dict) or {}
    require_numbers(f"{path}: alpha_pattern", patterns.values())
    require_expressions(f"{path}: alpha_pattern", patterns)
    base_weights = open_weights(base or base_of_adapter(adapter), subfolder)
    require_same_rows(adapter, {name: spec.shape for name, spec in base_weights.specs.items()}, base_weights.label)
    return with_lora(adapter, base_weights, stored_tensors([weights], adapter), scaling_of(config))


def require_numbers(name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, expected a number; {FETCH}")


def require_expressions(name: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error}); {FETCH}") from None


def base_of_adapter(adapter: str) -> str:
    """The directory or hub id of the model that a peft adapter was trained on. Raises ValueError if it names none."""
    file = f"{adapter}/adapter_config.json"
    name = value_of(file, read_object(adapter, "adapter_config.json"), "base_model_name_or_path", str)
    if not name:
        raise ValueError(f"{file}: base_model_name_or_path is missing; name the base with --base")
    return name


def unsupported_settings(config: Mapping[str, Any]) -> Iterator[str]:
    """The settings of an adapter_config.json that are not of plain LoRA, as parts of an error message."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']}"
    if config.get("init_lora_weights") not in INITS_THAT_KEEP_THE_BASE:
        yield f"init_lora_weights is {config['init_lora_weights']}, which changes the base"
    yield from (f"{name} is set" for name in UNSUPPORTED_SETTINGS if config.get(name))


def scaling_of(config: Mapping[str, Any]) -> Callable[[str, int], float]:
    """A function that gives a layer's scaling from its name and rank: alpha / r, or with rslora alpha / sqrt(r).

    As in peft, alpha is that of the first key of alpha_pattern that matches the end of the layer's name.
    """
    patterns: dict[str, float] = config.get("alpha_pattern") or {}

    def scaling(layer: str, rank: int) -> float:
        matching = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        alpha = next(matching, config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    return scaling


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a path is the folder of a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()
