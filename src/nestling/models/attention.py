"""The attention implementation that suits a machine."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

FLOAT32 = "sdpa_float32"
VARLEN = "varlen"


def resolve_attention(attn_implementation: str, precision: torch.dtype, *, cpu: bool = False) -> str:
    """The name to load a model with: "auto" takes the fastest exact one at hand, other names stay. `cpu` says that
    the model stays on the CPU though there is a GPU.

    In bfloat16 a GPU takes flash attention if it is installed, and a CPU takes SDPA in float32: its bfloat16 kernels
    are two to six times slower forward and backward (texts of 20 to 128 tokens), and less exact.
    """
    if attn_implementation == VARLEN:
        AttentionInterface.register(VARLEN, varlen_attention)
        AttentionMaskInterface.register(VARLEN, no_mask)
    if attn_implementation != "auto":
        return attn_implementation
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
    cu_seqlens: Tensor | None = None,
    longest: int = 0,
    keys: Tensor | None = None,
    key_cu_seqlens: Tensor | None = None,
    most_keys: int = 0,
    beginnings: Sequence[int] = (),
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each text of a packed chunk, [1, heads, T, d] -> [1, T, heads, d]; else SDPA.

    The segments of a `nestling.batches.groups.GroupChunk` attend to their beginnings too. A GPU runs torch's
    `varlen_attn` (not yet seen to run here), which computes in half precision only; in any other, and on a CPU, it is
    one SDPA for each text.
    """
    if cu_seqlens is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
        return output, None
    if sliding_window is not None and sliding_window < max(longest, most_keys):
        raise ValueError(
            f"attn_implementation: varlen has no sliding window, and the model's is {sliding_window} tokens; use sdpa"
        )
    dtype = computing_type(query)
    if query.device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return _text_by_text(query, key, value, cu_seqlens, beginnings, scaling), None
    q, k, v = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))  # [T, heads, d]
    if keys is not None:
        k, v = k[keys], v[keys]  # [K, heads, d]
    key_cu_seqlens, most_keys = (cu_seqlens, longest) if key_cu_seqlens is None else (key_cu_seqlens, most_keys)
    return _packed(q, k, v, (cu_seqlens, key_cu_seqlens), (longest, most_keys), scaling)[None], None


def computing_type(tensor: Tensor) -> torch.dtype:
    """What an operation that autocast knows would compute in; queries and keys can leave a norm of float32 weights
    wider than values."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    most: tuple[int, int],
    scaling: float | None,
) -> Tensor:
    """[T, heads, d]; `cu_seqlens` of queries and keys, and the `most` of one text."""
    from torch.nn.attention.varlen import varlen_attn

    causal = (-1, 0)  # aligned at the end of the keys
    packed = varlen_attn(query, key, value, *cu_seqlens, *most, scale=scaling, window_size=causal, enable_gqa=True)
    return cast(Tensor, packed)


def _text_by_text(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, beginnings: Sequence[int], scaling: float | None
) -> Tensor:
    """[1, T, heads, d] in the type of `query`; computed in float32, as `sdpa_in_float32`."""
    lengths = cu_seqlens.diff().tolist()
    wide = torch.promote_types(query.dtype, torch.float32)
    queries, keys, values = (each.to(wide).split(lengths, dim=2) for each in (query, key, value))
    attend = partial(nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    found = []
    with torch.autocast(query.device.type, enabled=False):
        for i, q in enumerate(queries):
            before = beginnings[i] if beginnings else -1
            if before < 0:
                found.append(attend(q, keys[i], values[i], is_causal=True))
            else:
                k, v = (torch.cat([each[before], each[i]], dim=2) for each in (keys, values))
                found.append(attend(q, k, v, attn_mask=continuing_mask(lengths[before], lengths[i], query.device)))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous().to(query.dtype)


def continuing_mask(before: int, length: int, device: torch.device) -> Tensor:
    """[length, before + length] bool: causal, behind keys that all may see."""
    return torch.ones(length, before + length, dtype=torch.bool, device=device).tril_(before)


def no_mask(*arguments: Any, **settings: Any) -> None:
    """Causal models with padding on the right, or with `cu_seqlens`, need none."""
