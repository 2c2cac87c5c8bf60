"""The model with what is to be trained."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import BitsAndBytesConfig

from nestling.config.checks import require_extra
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker

Model = TypeVar("Model", Embedder, Reranker)


def load_trainable(
    kind: type[Model],
    model: str,
    *,
    lora: Mapping[str, Any] | None,
    quantised: bool = False,
    precision: torch.dtype,
    cpu: bool = False,
    **settings: Any,
) -> Model:
    """Load a model for training. Master weights are float32, and frozen ones stay as they are published.

    Args:
        kind: `Embedder` or `Reranker`.
        model: Directory or hub id.
        lora: Arguments of `attach_lora`; None trains all weights.
        quantised: Hold the frozen base in 4 bits (QLoRA, https://arxiv.org/abs/2305.14314), which takes a GPU and
            bitsandbytes.
        precision: Of the computation.
        cpu: The model stays on the CPU even if there is a GPU.
        settings: More arguments of the kind's `from_pretrained`.

    Raises:
        ValueError: 4 bits are asked for without a GPU or bitsandbytes.
    """
    frozen = lora is not None and precision == torch.bfloat16
    loaded = kind.from_pretrained(
        model,
        dtype="auto" if frozen else torch.float32,
        quantisation=four_bits(cpu) if quantised else None,
        precision=precision,
        cpu=cpu,
        **settings,
    )
    if lora is not None:
        loaded.backbone = attach_lora(loaded.backbone, **lora)
    return loaded


def four_bits(cpu: bool) -> BitsAndBytesConfig:
    """Normal floats of 4 bits, their scales quantised too, computing in bfloat16; not yet seen to run here."""
    if cpu or not torch.cuda.is_available():
        raise ValueError("tuning: qlora holds the base in 4 bits, which takes a CUDA GPU, and there is none; use lora")
    require_extra("tuning: qlora", "qlora", "bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
