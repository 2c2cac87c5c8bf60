"""The model with what is to be trained."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from nestling.adapters import attach_lora
from nestling.embedder import Embedder
from nestling.pooling import Pooling
from nestling.reranker import Reranker, RerankerSettings


def load_trainable(
    model: str,
    *,
    lora: Mapping[str, Any] | None,
    quantised: bool = False,
    precision: torch.dtype,
    attention: str = "auto",
    pooling: Pooling | None = None,
    dropout: float | None = 0.0,
    instruction: str | None = None,
    cpu: bool = False,
) -> Embedder:
    """Load a model for training. Master weights are float32, and frozen ones stay as they are published.

    Args:
        model: Directory or hub id.
        lora: Arguments of `attach_lora`; None trains all weights.
        quantised: Hold the frozen base in 4 bits (QLoRA, https://arxiv.org/abs/2305.14314), which takes a GPU and
            bitsandbytes.
        precision: Of the computation.
        attention: As in `Embedder.from_pretrained`, as are the rest.
        pooling: Overrides what the model's files say.
        dropout: Inside the model; None keeps the model's own.
        instruction: Default task of queries.
        cpu: The model stays on the CPU even if there is a GPU.

    Raises:
        ValueError: 4 bits are asked for without a GPU or bitsandbytes.
    """
    frozen = lora is not None and precision == torch.bfloat16
    embedder = Embedder.from_pretrained(
        model,
        dtype="auto" if frozen else torch.float32,
        quantisation=four_bits(cpu) if quantised else None,
        precision=precision,
        attention=attention,
        pooling=pooling,
        dropout=dropout,
        instruction=instruction,
        cpu=cpu,
    )
    if lora is not None:
        embedder.backbone = attach_lora(embedder.backbone, **lora)
    return embedder


def load_trainable_reranker(
    model: str,
    *,
    settings: RerankerSettings,
    lora: Mapping[str, Any] | None,
    quantised: bool = False,
    precision: torch.dtype,
    attention: str = "auto",
    share_prefix: bool = True,
    dropout: float | None = 0.0,
    cpu: bool = False,
) -> Reranker:
    """As `load_trainable`, for a reranker; `settings`, `share_prefix` as in `Reranker.from_pretrained`."""
    frozen = lora is not None and precision == torch.bfloat16
    reranker = Reranker.from_pretrained(
        model,
        dtype="auto" if frozen else torch.float32,
        quantisation=four_bits(cpu) if quantised else None,
        precision=precision,
        attention=attention,
        settings=settings,
        share_prefix=share_prefix,
        dropout=dropout,
        cpu=cpu,
    )
    if lora is not None:
        reranker.backbone = attach_lora(reranker.backbone, **lora)
    return reranker


def four_bits(cpu: bool) -> BitsAndBytesConfig:
    """Normal floats of 4 bits, their scales quantised too, computing in bfloat16; not yet seen to run here."""
    if cpu or not torch.cuda.is_available():
        raise ValueError("tuning: qlora holds the base in 4 bits, which takes a CUDA GPU, and there is none; use lora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("tuning: qlora needs bitsandbytes, which is not installed; pip install 'nestling[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
