"""The attention implementation that suits a machine."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

FLOAT32 = "sdpa_float32"


def resolve_attention(attention: str, precision: torch.dtype, *, cpu: bool = False) -> str:
    """The name to load a model with: "auto" takes the fastest exact one at hand, other names stay. `cpu` says that
    the model stays on the CPU though there is a GPU.

    In bfloat16 a GPU takes flash attention if it is installed, and a CPU takes SDPA in float32: its bfloat16 kernels
    are two to six times slower forward and backward (texts of 20 to 128 tokens), and less exact.
    """
    if attention != "auto":
        return attention
    if precision != torch.bfloat16:
        return "sdpa"
    if torch.accelerator.is_available() and not cpu:
        return "sdpa" if importlib.util.find_spec("flash_attn") is None else "flash_attention_2"
    AttentionInterface.register(FLOAT32, sdpa_in_float32)
    AttentionMaskInterface.register(FLOAT32, sdpa_mask)
    return FLOAT32


def sdpa_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA on [B, heads, L, head dimension], computed in float32 and returned in the type of `query`."""
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **settings
        )
    return output.to(query.dtype), None
