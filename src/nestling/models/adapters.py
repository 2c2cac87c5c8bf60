"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.models.checked_loading import loading
from nestling.models.json_files import FETCH
from nestling.models.weights import ADAPTER, model_file, open_safetensors


def attach_lora(
    backbone: nn.Module, *, r: int, alpha: int, dropout: float, target_modules: Sequence[str] = ()
) -> PeftModel:
    """Freeze `backbone` and add LoRA adapters to its linear layers: all of them, or those that `target_modules` names.

    The adapters are float32 whatever the backbone's dtype, as master weights. BERT's pooler head gets none: embeddings
    do not depend on it, and distributed training fails on a parameter without gradient.
    """
    has_pooler = any("pooler" in name.split(".") for name, _ in backbone.named_modules())
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        exclude_modules=r".*\bpooler\b.*" if has_pooler else None,
    )
    try:
        with without_deprecations():
            return with_less_traffic(get_peft_model(cast(PreTrainedModel, backbone), config))
    except ValueError as error:
        raise ValueError(f"lora.target_modules {list(target_modules)}: {error}") from error


def load_lora(backbone: nn.Module, adapter: str) -> PeftModel:
    """Add an adapter saved by peft, a directory or hub id, to the backbone that it was trained on.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    with without_deprecations(), loading(adapter, "adapter"):
        adapted = PeftModel.from_pretrained(backbone, adapter)
    require_same_factors(adapter, adapted)
    return with_less_traffic(adapted)


def require_same_factors(adapter: str, adapted: PeftModel) -> None:
    """Raise ValueError unless a model has taken all factors of an adapter and no others; of those peft only warns."""
    path = model_file(adapter, ADAPTER)
    if path is None:  # a pickle
        return
    stored = {name for name in open_safetensors(path).keys() if ".lora_" in name}  # noqa: SIM118
    taken = {name for name in get_peft_model_state_dict(adapted, save_embedding_layers=False) if ".lora_" in name}
    lacking, further = sorted(taken - stored), sorted(stored - taken)
    if lacking or further:
        raise ValueError(
            f"{path}: not a whole adapter of this base: it lacks {len(lacking)} tensors, and for {len(further)} of its "
            f"own the base has no layer, such as {[*lacking, *further][0]}; name the base that it was trained on, or "
            f"{FETCH}"
        )


def with_less_traffic(model: PeftModel) -> PeftModel:
    """Have the adapters of a model read and write less memory, with the same outputs and gradients.

    peft casts the input of each adapter to the float32 of its weights, and autocast casts it back to bfloat16: the cast
    is left out. The scale, alpha / r, is applied between the two factors, to r numbers a token instead of the width of
    the output; bit for bit the same where it is a power of two. Under autocast the second product scales and adds to
    the layer's output by itself, with one rounding instead of three.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
            for adapter in set(module.lora_A) - set(module.lora_variant):
                module.lora_variant[adapter] = FusedScale()
    return model


def as_peft(model: nn.Module) -> None:
    """Have the adapters of a model compute as peft's own, to compare with them."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = True
            module.lora_variant.clear()


class FusedScale(LoraVariant):
    """LoRA whose scale is applied to few numbers or by a product, and that is merged into weights like peft's own."""

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + change_of(module, active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += change_of(module, active_adapter, orig_weight)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - change_of(module, active_adapter, orig_weight)

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **settings: Any) -> Tensor:
        first, second = (cast(nn.Linear, part[active_adapter]) for part in (module.lora_A, module.lora_B))
        scale, x = module.scaling[active_adapter], module.lora_dropout[active_adapter](x)
        if torch.is_autocast_enabled(x.device.type):
            low = first(x)
            added = torch.addmm(result.flatten(0, -2), low.flatten(0, -2), second.weight.T, alpha=scale)
            return added.view(result.shape)
        change: Tensor = second(first(x.to(first.weight.dtype)) * scale)
        return result + change


def change_of(module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """What an adapter adds to a weight, in its dtype."""
    change: Tensor = cast(Any, module).get_delta_weight(adapter)
    return change.to(weight.dtype)


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Ignore a deprecation warning that users can do nothing about: peft 0.21 uses an older name of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
