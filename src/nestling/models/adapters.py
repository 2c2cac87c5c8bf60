"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from transformers import PreTrainedModel

from nestling.models.checked_loading import loading
from nestling.models.json_files import FETCH
from nestling.models.weights import ADAPTER, model_file, open_safetensors

# Beginnings of warnings of peft about what users can do nothing about, or what `lora_layers` refuses.
IGNORED = (
    "fan_in_fan_out is set to",
    "Model (has|with) `tie_word_embeddings=True`",
    "LoRA adapter added to Conv",
    "The following (rank|alpha)_pattern keys",  # which it has made itself for experts
)


def attach_lora(
    backbone: nn.Module, *, r: int, alpha: int, dropout: float, target_modules: Sequence[str] = ()
) -> PeftModel:
    """Freeze `backbone` and add LoRA adapters to its linear layers: all of them, or those that `target_modules` names.

    The adapters are float32 whatever the backbone's dtype, as master weights. Of many mixtures of experts peft adapts
    the experts' tensors as well.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) or "all-linear",
        exclude_modules=not_adapted(backbone) or None,
    )
    try:
        with without_deprecations():
            adapted = get_peft_model(cast(PreTrainedModel, backbone), config)
            require_adapted(adapted, target_modules)
            return with_less_traffic(adapted)
    except ValueError as error:
        if dropout and "ParamWrapper" in str(error):
            raise ValueError(
                f"lora.dropout is {dropout:g}, and adapters of experts' tensors take none; set lora.dropout 0, or name "
                "other layers in lora.target_modules, such as q_proj,k_proj,v_proj,o_proj"
            ) from error
        raise ValueError(f"lora.target_modules {list(target_modules)}: {error}") from error


def require_adapted(model: PeftModel, target_modules: Sequence[str]) -> None:
    """Raise ValueError for names of layers of which none has an adapter; those that peft has rewritten it has found."""
    paths = [path for path, module in model.named_modules() if isinstance(module, LoraLayer)]
    named = cast(Any, model).peft_config[model.active_adapter].target_modules
    missed = [each for each in target_modules if each in named and not any(path.endswith(f".{each}") for path in paths)]
    if missed:
        adapted = sorted({path.rpartition(".")[2] for path in paths})
        raise ValueError(f"no layer to adapt is called {', '.join(missed)}; adapters would be on {', '.join(adapted)}")


def not_adapted(backbone: nn.Module) -> list[str]:
    """The names of linear layers that get no adapter.

    BERT's pooler head: embeddings do not depend on it, and distributed training fails on a parameter without gradient.
    The head of a classifier, which is trained in full.
    In Mamba's mixers those whose weights its GPU kernels read themselves, past an adapter. Routers of experts that are
    a linear layer in name and return more than its output.
    """
    names = []
    if type(backbone).__name__.endswith("ForSequenceClassification"):
        beside = [(name, each) for name, each in backbone.named_children() if name != backbone.base_model_prefix]
        names = [f"{name}.{path}".removesuffix(".") for name, each in beside for path, _ in each.named_modules()]
    for parent, mixer in backbone.named_modules():
        for name, module in mixer.named_children():
            path = f"{parent}.{name}".removeprefix(".")
            mamba = hasattr(mixer, "A_log") and hasattr(mixer, "D") and name in ("x_proj", "dt_proj", "out_proj")
            router = isinstance(module, nn.Linear) and "router" in type(module).__name__.lower()
            if mamba or router or "pooler" in path.split("."):
                names.append(path)
    return names


def load_lora(backbone: nn.Module, adapter: str) -> PeftModel:
    """Add an adapter saved by peft, a directory or hub id, to the backbone that it was trained on.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    require_same_rows(adapter, {name: tuple(each.shape) for name, each in backbone.named_parameters()}, "its base")
    with without_deprecations(), loading(adapter, "adapter"):
        adapted = PeftModel.from_pretrained(backbone, adapter)
    require_same_factors(adapter, adapted)
    return with_less_traffic(adapted)


def require_same_rows(adapter: str, shapes: Mapping[str, tuple[int, ...]], base: str) -> None:
    """Raise ValueError for an adapter with embeddings of another vocabulary than its base: peft saves resized ones.

    Args:
        adapter: Its directory or hub id.
        shapes: The shape of each weight of the base, by its name.
        base: What the error calls the base.
    """
    path = model_file(adapter, ADAPTER)
    if path is None:  # a pickle
        return
    stored = open_safetensors(path)
    for name in [each for each in stored.keys() if ".lora_" not in each]:  # noqa: SIM118
        own = next((each for each in shapes if name.endswith(f".{each}") or each.endswith(f".{bare(name)}")), None)
        shape, expected = tuple(stored.get_slice(name).get_shape()), shapes.get(own or "", ())
        if len(shape) == len(expected) == 2 and shape[1] == expected[1] and shape[0] != expected[0]:
            raise ValueError(
                f"{path}: {bare(name)} has {shape[0]:,} rows, and {own} of {base} {expected[0]:,}: the adapter was "
                "trained on a base whose vocabulary was resized; resize the base's likewise (resize_token_embeddings("
                f"{shape[0]})), save it with the adapter's tokenizer, and give that directory as the base"
            )


def bare(name: str) -> str:
    """The name in its base of a weight that peft saved."""
    return name.removeprefix("base_model.model.")


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
        if isinstance(module, LoraLinear) and not module.lora_variant:  # such as DoRA, or none
            module.cast_input_dtype_enabled = False
            for adapter in module.lora_A:
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
    """Ignore warnings that users can do nothing about; peft 0.21 uses an older name of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for message in IGNORED:
            warnings.filterwarnings("ignore", message)
        yield
