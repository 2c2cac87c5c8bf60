"""Loading a model for training: all weights, LoRA adapters, or adapters on a quantised base (QLoRA)."""

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
    model_class: type[Model],
    model: str,
    *,
    lora: Mapping[str, Any] | None,
    quantised: bool = False,
    precision: torch.dtype,
    trained_dtype: torch.dtype = torch.float32,
    cpu: bool = False,
    **settings: Any,
) -> Model:
    """Load a model for training. Frozen weights that compute in bfloat16 keep their published dtype.

    Args:
        model_class: `Embedder` or `Reranker`.
        model: Directory or hub id.
        lora: Arguments of `attach_lora`; None trains all weights.
        quantised: Hold the frozen base in 4 bits (QLoRA, https://arxiv.org/abs/2305.14314), which needs a GPU and
            bitsandbytes.
        precision: Dtype of the computation, float32 or bfloat16.
        trained_dtype: Dtype of the weights, if all are trained; adapters are float32.
        cpu: Whether the model will stay on the CPU even if there is a GPU.
        settings: More arguments for `from_pretrained` of `model_class`.

    Raises:
        ValueError: `quantised` without a GPU or bitsandbytes.
    """
    frozen = lora is not None and precision == torch.bfloat16
    loaded = model_class.from_pretrained(
        model,
        dtype="auto" if frozen else trained_dtype if lora is None else torch.float32,
        quantisation=four_bits(cpu) if quantised else None,
        precision=precision,
        cpu=cpu,
        **settings,
    )
    if lora is not None:
        loaded.backbone = attach_lora(loaded.backbone, **lora)
        loaded.train_head()
    return loaded


def four_bits(cpu: bool) -> BitsAndBytesConfig:
    """QLoRA's quantisation: NF4 with double quantisation, computing in bfloat16; not yet run on a GPU."""
    if cpu or not torch.cuda.is_available():
        raise ValueError("tuning: qlora holds the base in 4 bits, which needs a CUDA GPU, and there is none; use lora")
    require_extra("tuning: qlora", "qlora", "bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
