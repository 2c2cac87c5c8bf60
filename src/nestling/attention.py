"""The attention implementation that suits a machine."""

import importlib.util
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

FLOAT32 = "sdpa_float32"
VARLEN = "varlen"


def resolve_attention(attention: str, precision: torch.dtype, *, cpu: bool = False) -> str:
    """The name to load a model with: "auto" takes the fastest exact one at hand, other names stay. `cpu` says that
    the model stays on the CPU though there is a GPU.

    In bfloat16 a GPU takes flash attention if it is installed, and a CPU takes SDPA in float32: its bfloat16 kernels
    are two to six times slower forward and backward (texts of 20 to 128 tokens), and less exact.
    """
    if attention == VARLEN:
        AttentionInterface.register(VARLEN, varlen_attention)
        AttentionMaskInterface.register(VARLEN, no_mask)
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


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    bounds: Tensor | None = None,
    longest: int = 0,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each text of a `PackedChunk`, [1, heads, T, d] -> [1, T, heads, d]; else SDPA.

    A GPU runs torch's `varlen_attn` (not yet seen to run here), a CPU one SDPA for each text.
    """
    if bounds is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
        return output, None
    if sliding_window is not None and sliding_window < longest:
        raise ValueError(
            f"attention: varlen has no sliding window, and the model's is {sliding_window} tokens; use sdpa"
        )
    if query.device.type == "cpu":
        return _text_by_text(query, key, value, bounds, scaling), None
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [T, heads, d]
    causal = (-1, 0)
    packed = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=causal, enable_gqa=True)
    return cast(Tensor, packed)[None], None


def _text_by_text(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float | None) -> Tensor:
    lengths = bounds.diff().tolist()
    texts = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    attend = partial(nn.functional.scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=True)
    return torch.cat([attend(q, k, v) for q, k, v in texts], dim=2).transpose(1, 2).contiguous()


def no_mask(*arguments: Any, **settings: Any) -> None:
    """Causal models with padding on the right, or with `bounds`, need none."""
