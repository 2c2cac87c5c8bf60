"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft."""

import warnings
from collections.abc import Sequence
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel


def attach_lora(backbone: nn.Module, *, r: int, alpha: int, dropout: float, targets: Sequence[str] = ()) -> PeftModel:
    """Freeze `backbone` and give its linear layers adapters; all of them unless `targets` names some.

    The adapters are float32 whatever the backbone's dtype, as master weights. BERT's pooler head is left out: it does
    not take part in an embedding, and a parameter without gradient stops distributed training.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets) or "all-linear",
        exclude_modules=r".*\bpooler\b.*",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads a name that transformers 5.2x deprecates
            return get_peft_model(cast(PreTrainedModel, backbone), config)
    except ValueError as error:
        raise ValueError(f"lora.targets {list(targets)}: {error}") from error
