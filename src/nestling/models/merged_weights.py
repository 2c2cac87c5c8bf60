"""The weights of a model in memory with LoRA adapters merged, without a copy of the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.models.adapters import FusedScale
from nestling.models.attention import VARLEN
from nestling.models.replaced_weights import weights_replaced
from nestling.models.safetensors_writer import Spec
from nestling.models.token_model import TokenModel


class MergedWeights(Mapping[str, Tensor]):
    """The weights of a backbone under the names that they have without adapters; each is computed when accessed.

    The weight of a LoRA layer is W + scale B A in float32 (arXiv 2106.09685); every other tensor is the model's own.
    The model is not changed. Iteration lists only the first name of tied tensors; the others can be accessed as well.

    Args:
        backbone: A transformers model, possibly wrapped by peft.

    Raises:
        ValueError: The backbone has adapters other than plain LoRA on linear layers.
    """

    def __init__(self, backbone: nn.Module) -> None:
        model = without_adapters(backbone)
        self._layers = lora_layers(backbone)
        self._tensors: dict[str, Tensor] = {}
        self._tied: dict[str, str] = {}  # to the first name of the tensor
        seen: dict[tuple[int, torch.Size], str] = {}
        for name, tensor in model.state_dict().items():
            if ".lora_" in name:
                continue
            bare, identity = name.replace(".base_layer.", "."), (tensor.data_ptr(), tensor.shape)
            if identity in seen and tensor.numel():
                self._tied[bare] = seen[identity]
                continue
            seen[identity] = bare
            self._tensors[bare] = tensor

    def __getitem__(self, name: str) -> Tensor:
        name = self.first_name(name)
        tensor = self._tensors[name]
        layer = self._layers.get(name.removesuffix(".weight"))
        return tensor if layer is None or not name.endswith(".weight") else tensor.float() + lora_delta(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def first_name(self, name: str) -> str:
        """The name under which iteration lists the tensor."""
        return self._tied.get(name, name)

    def specs(self, dtype: torch.dtype) -> dict[str, Spec]:
        """Shape and dtype of each tensor once those of floating point have been rounded to `dtype`."""
        return {
            name: Spec(tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in `dtype`."""
        return sum(spec.nbytes() for spec in self.specs(dtype).values())


def without_adapters(backbone: nn.Module) -> PreTrainedModel:
    """The transformers model inside a peft model, or `backbone` itself."""
    inner = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    return cast(PreTrainedModel, inner)


def lora_layers(backbone: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by name; ValueError for other adapters than plain LoRA on linear layers."""
    modules = without_adapters(backbone).named_modules()
    return {name: _plain_lora(name, each) for name, each in modules if isinstance(each, BaseTunerLayer)}


def lora_delta(layer: LoraLinear) -> Tensor:
    """scale B A of the active adapters, float32, in the shape of the layer's weight."""
    weight = cast(Tensor, layer.get_base_layer().weight)
    delta = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
    for adapter in layer.active_adapters:
        b, a = (cast(Tensor, part[adapter].weight).detach().float() for part in (layer.lora_B, layer.lora_A))
        delta += layer.scaling[adapter] * (b @ a)
    return delta


def _plain_lora(name: str, layer: BaseTunerLayer) -> LoraLinear:
    plain = (
        isinstance(layer, LoraLinear)
        and isinstance(layer.get_base_layer(), nn.Linear)
        and all(isinstance(variant, FusedScale) for variant in layer.lora_variant.values())
        and not (any(layer.lora_bias.values()) or layer.merged)
    )
    if not plain:
        raise ValueError(
            f"{name} has an adapter of type {type(layer).__name__} that cannot be merged exactly; "
            "expected plain LoRA (no DoRA, no bias, not merged already) on linear layers"
        )
    return cast(LoraLinear, layer)


@contextmanager
def computing_with(
    model: TokenModel, weights: Mapping[str, Tensor] | None = None, *, precision: torch.dtype = torch.float32
) -> Iterator[None]:
    """A context in which `model` computes with other weights, or with its own, all of them cast to float32.

    Only one module at a time has a copy in float32, and autocast keeps no casts: memory never holds a second copy.

    Args:
        model: The model, with adapters or without.
        weights: By the names that `MergedWeights` has; the adapters are off. None for the model's own with its
            adapters on.
        precision: Of the computation, as the model's own `precision`.
    """
    own, backbone = model.precision, without_adapters(model.backbone)
    model.precision = precision
    try:
        with (
            weights_replaced(backbone, weights),
            nullcontext() if weights is None else _adapters_off(model.backbone),
            _float32_attention(backbone) if precision == torch.float32 else nullcontext(),
            torch.autocast(backbone.device.type, enabled=False, cache_enabled=False),
        ):
            yield
    finally:
        model.precision = own


@contextmanager
def _adapters_off(backbone: nn.Module) -> Iterator[None]:
    if isinstance(backbone, PeftModel):
        with backbone.disable_adapter():
            yield
    else:
        yield


@contextmanager
def _float32_attention(model: PreTrainedModel) -> Iterator[None]:
    attention = model.config._attn_implementation
    if attention not in ("flash_attention_2", VARLEN):
        yield
        return
    model.set_attn_implementation("sdpa")  # FlashAttention, which varlen uses on a GPU, does not support float32
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
