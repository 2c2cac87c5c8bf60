"""Attention implementations that are registered with transformers, and the choice of one for a machine."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import is_flash_attn_2_available

FLOAT32 = "sdpa_float32"
VARLEN = "varlen"


def resolve_attention(
    attn_implementation: str, precision: torch.dtype, *, cpu: bool = False, flash: bool = False
) -> str:
    """The name of the attention implementation to load a model with.

    Args:
        attn_implementation: "auto" for the fastest exact one that is available; any other name is returned as it is.
        precision: Dtype of the computation. In bfloat16 "auto" is FlashAttention on a GPU if it fits, and SDPA in
            float32 on a CPU, whose bfloat16 kernels are two to six times slower forward and backward (texts of 20 to
            128 tokens) and less exact.
        cpu: Whether the model will stay on the CPU even if there is a GPU.
        flash: Whether FlashAttention 2 fits, by `flash_attention_fits`.
    """
    if attn_implementation == VARLEN:
        AttentionInterface.register(VARLEN, varlen_attention)
        AttentionMaskInterface.register(VARLEN, no_mask)
    if attn_implementation != "auto":
        return attn_implementation
    if precision != torch.bfloat16:
        return "sdpa"
    if torch.accelerator.is_available() and not cpu:
        return "flash_attention_2" if flash else "sdpa"
    AttentionInterface.register(FLOAT32, sdpa_in_float32)
    AttentionMaskInterface.register(FLOAT32, sdpa_mask)
    return FLOAT32


def padded_attention(
    auto_class: Any, config: PretrainedConfig, attn_implementation: str, precision: torch.dtype, *, cpu: bool
) -> str:
    """As `resolve_attention`, but "auto" is eager for a class of models that has no SDPA."""
    kind = auto_class._model_mapping.get(type(config), None)
    chosen = resolve_attention(attn_implementation, precision, cpu=cpu)
    return "eager" if attn_implementation == "auto" and not getattr(kind, "_supports_sdpa", True) else chosen


def flash_attention_fits(auto_class: Any, config: PretrainedConfig) -> bool:
    """Whether FlashAttention 2 is installed in a version that transformers takes, and the model's class supports it.

    Args:
        auto_class: One of transformers' Auto classes, which chooses the model's class by its config.
        config: The model's config.
    """
    kind = auto_class._model_mapping.get(type(config), None)
    return is_flash_attn_2_available() and bool(getattr(kind, "_supports_flash_attn", False))


def sdpa_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA on [B, heads, L, d], computed in float32 and returned in the dtype of `query`."""
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
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int = 0,
    key_positions: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int = 0,
    prefixes: Sequence[int] = (),
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each text of a packed chunk, [1, heads, T, d] -> [1, T, heads, d]; SDPA for other chunks.

    Suffixes of a `nestling.batches.prefix_sharing.SharedPrefixChunk`, which documents the arguments, attend to their
    prefix as well. On a GPU in half precision this is torch's `varlen_attn` (not yet run on a GPU). On a CPU, and in
    other dtypes, which `varlen_attn` does not support, it is one call of SDPA for each segment.
    """
    if cu_seqlens_q is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
        return output, None
    if sliding_window is not None and sliding_window < max(max_seqlen_q, max_seqlen_k):
        raise ValueError(
            f"attn_implementation: varlen has no sliding window, and the model's is {sliding_window} tokens; use sdpa"
        )
    dtype = autocast_dtype(query)
    if query.device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return _segment_by_segment(query, key, value, cu_seqlens_q, prefixes, scaling), None
    q, k, v = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))  # [T, heads, d]
    if key_positions is not None:
        k, v = k[key_positions], v[key_positions]  # [K, heads, d]
    if cu_seqlens_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q
    return _varlen_kernel(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), scaling)[None], None


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which an operation that autocast lowers would compute, such as a matrix product.

    Queries and keys may be in a wider dtype than values: a norm with float32 weights returns float32.
    """
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _varlen_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    max_seqlens: tuple[int, int],
    scaling: float | None,
) -> Tensor:
    """torch's `varlen_attn`, [T, heads, d]; `cu_seqlens` and `max_seqlens` are those of queries and of keys.

    Keys and values have fewer heads than queries in grouped-query attention. torch 2.11 has no word on that and no
    argument for it, so that heads are repeated there.
    """
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        grouped["enable_gqa"] = True
    elif key.shape[1] < query.shape[1]:
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
    causal = (-1, 0)  # the last query is aligned with the last key
    output = varlen_attn(query, key, value, *cu_seqlens, *max_seqlens, scale=scaling, window_size=causal, **grouped)
    return cast(Tensor, output)


def _segment_by_segment(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, prefixes: Sequence[int], scaling: float | None
) -> Tensor:
    """SDPA of each segment, [1, T, heads, d] in the dtype of `query`; computed in float32, as `sdpa_in_float32`."""
    lengths = cu_seqlens_q.diff().tolist()
    wide = torch.promote_types(query.dtype, torch.float32)
    queries, keys, values = (each.to(wide).split(lengths, dim=2) for each in (query, key, value))
    attend = partial(nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for i, q in enumerate(queries):
            prefix = prefixes[i] if prefixes else -1
            if prefix < 0:
                outputs.append(attend(q, keys[i], values[i], is_causal=True))
            else:
                k, v = (torch.cat([each[prefix], each[i]], dim=2) for each in (keys, values))
                outputs.append(attend(q, k, v, attn_mask=suffix_mask(lengths[prefix], lengths[i], query.device)))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous().to(query.dtype)


def suffix_mask(prefix_length: int, length: int, device: torch.device) -> Tensor:
    """[length, prefix_length + length] bool: every token of a suffix attends to the prefix, and causally to itself."""
    return torch.ones(length, prefix_length + length, dtype=torch.bool, device=device).tril_(prefix_length)


def no_mask(*arguments: Any, **settings: Any) -> None:
    """The mask function of `varlen`: causal models need no mask for padding on the right, nor with `cu_seqlens_q`."""
