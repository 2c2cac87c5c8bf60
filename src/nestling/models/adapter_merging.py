"""What adapters make of the weights that they adapt: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353).

Shapes: r rank, O and I outputs and inputs of a layer, E experts, V tokens, D dimensions.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nestling.models.adapters import FusedScale

INSTEAD = "leave it out of lora.target_modules, or train all weights (tuning: full)"


def without_adapters(backbone: nn.Module) -> PreTrainedModel:
    """The transformers model inside a peft model, or `backbone` itself."""
    inner = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    return cast(PreTrainedModel, inner)


def bare_name(name: str) -> str:
    """The name that a module or weight has without adapters."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def lora_layers(backbone: nn.Module) -> dict[str, LoraLayer]:
    """The adapters by the names of the weights that they adapt; ValueError for one that cannot be merged exactly."""
    model, layers = without_adapters(backbone), {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise ValueError(
                f"{name} was trained in full beside the adapter (modules_to_save), which is not merged here; "
                "merge_and_unload of peft makes a model of both, and save_pretrained writes it"
            )
        if isinstance(module, BaseTunerLayer):
            layer = require_mergeable(bare_name(name), module)
            layers[f"{bare_name(name)}.{adapted_parameter(layer)}"] = layer
    tied = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for name, layer in layers.items():
        if tied is not None and getattr(layer.get_base_layer(), "weight", None) is tied.weight:
            raise ValueError(
                f"{name} is the weight of the output layer too, which its adapter would leave as it is, so that it "
                f"cannot be merged; {INSTEAD}"
            )
    return layers


def require_mergeable(name: str, layer: BaseTunerLayer) -> LoraLayer:
    """The adapter; ValueError, with its name and what to do, unless it can be merged exactly."""
    base = layer.get_base_layer()
    known = (
        isinstance(layer, ParamWrapper)
        or (isinstance(layer, LoraLinear) and isinstance(base, nn.Linear | Conv1D))
        or (isinstance(layer, LoraEmbedding) and (type(base) is nn.Embedding or hasattr(base, "embed_scale")))
    )
    if not known:
        raise ValueError(
            f"{name} has an adapter of type {type(layer).__name__} on {type(base).__name__}, which cannot be merged "
            f"exactly; {INSTEAD}"
        )
    adapter = cast(LoraLayer, layer)
    variants = [each for each in adapter.lora_variant.values() if not isinstance(each, FusedScale)]
    dora = all(isinstance(each, DoraLinearVariant | DoraEmbeddingVariant) for each in variants)
    if not dora or any(adapter.lora_bias.values()) or adapter.merged or (variants and len(adapter.active_adapters) > 1):
        kinds = ", ".join(type(each).__name__ for each in variants) or "LoRA with a bias, or merged already"
        raise ValueError(
            f"{name} has an adapter that cannot be merged exactly ({kinds}); expected LoRA or one DoRA, without bias "
            f"and not merged; {INSTEAD}"
        )
    return adapter


def adapted_parameter(layer: LoraLayer) -> str:
    """The name of the parameter that an adapter adapts, within its module."""
    return layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"


def merged_weight(layer: LoraLayer, weight: Tensor, change: Tensor) -> Tensor:
    """W + change, where `change` is `lora_delta` of the layer; with DoRA m (W + change) / |W + change|.

    The norm is that of the weights of each output. The result is float32 (float64 for float64 weights).
    """
    merged = wide(weight) + change
    for adapter in layer.active_adapters:
        if adapter in layer.lora_magnitude_vector:
            magnitude = wide(cast(Any, layer.lora_magnitude_vector)[adapter].weight.detach())
            inputs = 0 if is_transposed(layer) else 1
            merged = merged * (magnitude / merged.norm(dim=inputs)).unsqueeze(inputs)
    return merged


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_transposed(layer: LoraLayer) -> bool:
    """Whether a weight is stored as [inputs, outputs]."""
    return isinstance(layer, LoraEmbedding) or bool(cast(Any, layer).fan_in_fan_out)


def lora_delta(layer: LoraLayer) -> Tensor:
    """scale B A of the active adapters, float32 at least, in the shape of the layer's weight."""
    parts = [layer.scaling[each] * factor_product(layer, each) for each in layer.active_adapters]
    return cast(Tensor, sum(parts[1:], start=parts[0]))


def factor_product(layer: LoraLayer, adapter: str) -> Tensor:
    """B A of an adapter, float32 at least, in the shape of the layer's weight."""
    if isinstance(layer, LoraEmbedding):
        b, a = (wide(part[adapter].detach()) for part in (layer.lora_embedding_B, layer.lora_embedding_A))
        return (b @ a).T  # [V, D]
    b, a = (wide(cast(Tensor, part[adapter].weight).detach()) for part in (layer.lora_B, layer.lora_A))
    experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
    if experts == 1:
        return (b @ a).T if is_transposed(layer) else b @ a  # [O, I], or [I, O]
    a, b = a.view(experts, -1, a.shape[-1]), b.view(b.shape[0], -1, experts)  # [E, r, I], [O, r, E]
    product = torch.einsum("ore,eri->eoi", b, a)
    return product if cast(Any, layer)._did_swap_in_out_features else product.transpose(1, 2)
