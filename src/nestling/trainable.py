"""The model with what is to be trained."""

from collections.abc import Mapping
from typing import Any

import torch

from nestling.adapters import attach_lora
from nestling.embedder import Embedder
from nestling.pooling import Pooling


def load_trainable(
    model: str,
    *,
    lora: Mapping[str, Any] | None,
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
        precision: Of the computation.
        attention: As in `Embedder.from_pretrained`, as are the rest.
        pooling: Overrides what the model's files say.
        dropout: Inside the model; None keeps the model's own.
        instruction: Default task of queries.
        cpu: The model stays on the CPU even if there is a GPU.
    """
    frozen = lora is not None and precision == torch.bfloat16
    embedder = Embedder.from_pretrained(
        model,
        dtype="auto" if frozen else torch.float32,
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
