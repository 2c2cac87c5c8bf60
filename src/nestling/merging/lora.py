"""LoRA adapters (arXiv 2106.09685) as models: W + scale B A in float32, a few rows at a time."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling.merging.names import own_names
from nestling.merging.sources import Source, Spec, open_weights, stored_tensors
from nestling.models.weights import model_file

# Rows of W that are multiplied at once have about so many elements. Pieces are cut along these rows whatever is asked
# for: a product of more rows may be added up in another order.
ROWS = 2**16

FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight")

# With these an adapter is more than W + scale B A, or of something else than the base that it names.
BEYOND_PLAIN = (
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
INITIALISED_BESIDE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base


@dataclass(frozen=True)
class Pair:
    """What the factors of a layer are called, and the layer's scale."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class WithLora:
    """A model with an adapter added to it.

    Args:
        label: How errors call it.
        base: The model.
        factors: A [r, columns] and B [rows, r] of each adapted layer.
        pairs: Those of each weight of the base that is adapted.
    """

    label: str
    base: Source
    factors: Source
    pairs: Mapping[str, Pair]

    @property
    def specs(self) -> Mapping[str, Spec]:
        return self.base.specs

    def read(self, name: str, start: int, stop: int) -> Tensor:
        values = self.base.read(name, start, stop)
        if name not in self.pairs or start >= stop:
            return values
        pair, (height, width) = self.pairs[name], self.specs[name].shape
        rank = self.factors.specs[pair.a].shape[0]
        a = self.factors.read(pair.a, 0, rank * width).view(rank, width).float()
        found = values.to(torch.float32, copy=True)
        step = max(1, ROWS // width)
        for top in range(start // width // step * step, -(-stop // width), step):
            bottom = min(top + step, height)
            b = self.factors.read(pair.b, top * rank, bottom * rank).view(-1, rank).float()
            first, last = max(start, top * width), min(stop, bottom * width)
            change = (pair.scale * (b @ a)).view(-1)[first - top * width : last - top * width]
            found[first - start : last - start] += change
        return found


def with_lora(label: str, base: Source, factors: Source, scale: Callable[[str, int], float]) -> WithLora:
    """The tensors of an adapter on the model that it was trained on.

    Args:
        label: How errors call it.
        base: The model.
        factors: The adapter, no other tensors in it.
        scale: Of a layer, from its name and its rank.

    Raises:
        ValueError: Anything but two matrices for each of some linear layers of the base.
    """
    layers = paired(label, factors)
    names = own_names([f"{layer}.weight" for layer in layers], base.specs, label, base.label)
    pairs: dict[str, Pair] = {}
    for layer, (a, b) in layers.items():
        name = names[f"{layer}.weight"]
        a_shape, b_shape = factors.specs[a].shape, factors.specs[b].shape
        if [len(a_shape), len(b_shape)] != [2, 2] or base.specs[name].shape != (b_shape[0], a_shape[1]):
            raise ValueError(
                f"{label}: {layer} has factors of {list(b_shape)} and {list(a_shape)}, and {name} of {base.label} is "
                f"{list(base.specs[name].shape)}; expected plain LoRA on linear layers"
            )
        pairs[name] = Pair(a, b, scale(layer, a_shape[0]))
    return WithLora(label, base, factors, pairs)


def paired(label: str, factors: Source) -> dict[str, tuple[str, str]]:
    """The names of A and B of each layer."""
    found: dict[str, dict[str, str]] = {}
    for name in factors.specs:
        match = FACTOR.fullmatch(name)
        if match is None:
            raise ValueError(f"{label}: {name} is no factor of a linear layer; expected plain LoRA")
        found.setdefault(match["layer"], {})[match["factor"]] = name
    for layer, sides in found.items():
        if len(sides) < 2:
            raise ValueError(f"{label}: {layer} has one factor instead of two")
    return {layer: (sides["A"], sides["B"]) for layer, sides in found.items()}


def is_factor(name: str) -> bool:
    """Whether a tensor's name is that of a LoRA factor."""
    return FACTOR.fullmatch(name) is not None


def open_adapter(adapter: str, base: str | None = None, subfolder: str = "") -> WithLora:
    """An adapter that peft wrote, a directory or hub id, on its base.

    Args:
        adapter: Where it is.
        base: Directory or hub id of the model under it; the one that it names by default.
        subfolder: Where the base's transformer lies inside.

    Raises:
        ValueError: It is not plain LoRA, or not of this base.
    """
    path = model_file(adapter, "adapter_config.json")
    if path is None:
        raise ValueError(f"{adapter} has no adapter_config.json; expected an adapter that peft wrote")
    config = json.loads(path.read_text(encoding="utf-8"))
    for reason in beyond_plain(config):
        raise ValueError(f"{adapter}: {reason}; expected plain LoRA, whose weights are W + scale B A")
    weights = model_file(adapter, "adapter_model.safetensors")
    if weights is None:
        raise ValueError(f"{adapter} has no adapter_model.safetensors; save it again with a recent peft")
    under = open_weights(base or config["base_model_name_or_path"], subfolder)
    return with_lora(adapter, under, stored_tensors([weights], adapter), scale_of(config))


def beyond_plain(config: Mapping[str, Any]) -> Iterator[str]:
    """Why an adapter_config.json is not of plain LoRA."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']}"
    if config.get("init_lora_weights") not in INITIALISED_BESIDE_THE_BASE:
        yield f"init_lora_weights is {config['init_lora_weights']}, which changes the base"
    yield from (f"{name} is set" for name in BEYOND_PLAIN if config.get(name))


def scale_of(config: Mapping[str, Any]) -> Callable[[str, int], float]:
    """alpha / r, or alpha / sqrt(r) with rslora, of each layer; alpha_pattern by peft's rule, r from the factors."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}

    def scale(layer: str, rank: int) -> float:
        own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        alpha = next(own, config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    return scale


def adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()
