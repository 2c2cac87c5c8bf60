"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel


def attach_lora(
    backbone: nn.Module, *, r: int, alpha: int, dropout: float, target_modules: Sequence[str] = ()
) -> PeftModel:
    """Freeze `backbone` and give its linear layers adapters; all of them unless `target_modules` names some.

    The adapters are float32 whatever the backbone's dtype, as master weights. BERT's pooler head is left out: it does
    not take part in an embedding, and a parameter without gradient stops distributed training.
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
            return get_peft_model(cast(PreTrainedModel, backbone), config)
    except ValueError as error:
        raise ValueError(f"lora.target_modules {list(target_modules)}: {error}") from error


def load_lora(backbone: nn.Module, adapter: str) -> PeftModel:
    """Put an adapter that peft wrote, a directory or hub id, on the backbone that it was trained on."""
    with without_deprecations():
        return PeftModel.from_pretrained(backbone, adapter)


@contextmanager
def without_deprecations() -> Iterator[None]:
    """peft 0.21 reads a name that transformers 5.2x deprecates, which is no news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
