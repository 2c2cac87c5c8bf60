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
    """Freeze `backbone` and add LoRA adapters to its linear layers: to all, or to those named by `target_modules`.

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
            return get_peft_model(cast(PreTrainedModel, backbone), config)
    except ValueError as error:
        raise ValueError(f"lora.target_modules {list(target_modules)}: {error}") from error


def load_lora(backbone: nn.Module, adapter: str) -> PeftModel:
    """Add an adapter saved by peft, a directory or hub id, to the backbone that it was trained on."""
    with without_deprecations():
        return PeftModel.from_pretrained(backbone, adapter)


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Ignore a deprecation warning that users can do nothing about: peft 0.21 uses an older name of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
