"""The setting of attention, the same in every recipe and script that loads a model."""

from typing import Literal

from nestling.config.checks import require

Attention = Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"]


def require_attention(attn_implementation: Attention, precision: str) -> None:
    """Raise ValueError for an attention that the type of the computation rules out."""
    require(
        precision != "fp32" or attn_implementation != "flash_attention_2",
        "attn_implementation: flash_attention_2 computes in bfloat16 only; set precision: bf16",
    )
