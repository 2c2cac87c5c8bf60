"""Attention implementations that are registered with transformers, and the choice of one for a machine."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import is_flash_attn_2_available

FLOAT32 = "sdpa_float32"
VARLEN = "varlen"


def resolve_attention(
    attn_implementation: str, precision: torch.dtype, kind: type[PreTrainedModel] | None, *, cpu: bool = False
) -> str:
    """The name of the attention implementation to load a model with.

    Args:
        attn_implementation: "auto" for the fastest exact one that the model has; "varlen" likewise for a model that
            cannot have it; any other name is returned as it is.
        precision: Dtype of the computation. In bfloat16 "auto" is FlashAttention on a GPU if it fits, and SDPA in
            float32 on a CPU, whose bfloat16 kernels are two to six times slower forward and backward (texts of 20 to
            128 tokens) and less exact.
        kind: The model's class, by `model_class`.
        cpu: Whether the model will stay on the CPU even if there is a GPU.

    Raises:
        ValueError: transformers has no such attention for the model.
    """
    available = attentions(kind)
    if attn_implementation in ("auto", VARLEN):
        wanted = [*([VARLEN] if attn_implementation == VARLEN else []), *fastest_first(precision, cpu)]
        attn_implementation = next(name for name in wanted if name in available)
    elif attn_implementation not in available:
        raise ValueError(
            f"attn_implementation: {attn_implementation}, which transformers does not have for {class_name(kind)}; use "
            "auto or eager"
        )
    register(attn_implementation)
    return attn_implementation


def model_class(auto_class: Any, config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers that one of its Auto classes makes of a config; None for code of a model's own."""
    kind: Any = auto_class._model_mapping.get(type(config), None)
    return cast("type[PreTrainedModel] | None", kind[0] if isinstance(kind, tuple) else kind)  # the default of several


def class_name(kind: type[PreTrainedModel] | None) -> str:
    return "the model" if kind is None else kind.__name__


def attentions(kind: type[PreTrainedModel] | None) -> set[str]:
    """Names of the attention implementations that a model's class has, by what it says of itself."""
    if kind is None:
        return {"flash_attention_2", "sdpa", "eager"}
    functions = kind._supports_sdpa and kind._supports_attention_backend  # it calls what is registered by a name
    has = {
        "flash_attention_2": kind._supports_flash_attn,
        "sdpa": kind._supports_sdpa,
        "eager": True,
        FLOAT32: functions,
        VARLEN: functions,
    }
    return {name for name, supported in has.items() if supported}


def fastest_first(precision: torch.dtype, cpu: bool) -> list[str]:
    """What "auto" tries on this machine, the fastest first."""
    if precision != torch.bfloat16:
        return ["sdpa", "eager"]
    if torch.accelerator.is_available() and not cpu:
        return [*(["flash_attention_2"] if is_flash_attn_2_available() else []), "sdpa", "eager"]
    return [FLOAT32, "sdpa", "eager"]


def register(attn_implementation: str) -> None:
    """Make one of the implementations of this module known to transformers."""
    if attn_implementation == VARLEN:
        AttentionInterface.register(VARLEN, varlen_attention)
        AttentionMaskInterface.register(VARLEN, mask_of_padding)
    if attn_implementation == FLOAT32:
        AttentionInterface.register(FLOAT32, sdpa_in_float32)
        AttentionMaskInterface.register(FLOAT32, sdpa_mask)


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
    """Attention within each text of a packed chunk, [1, heads, T, d] -> [1, T, heads, d]; SDPA for other chunks.

    It is causal unless the module says otherwise, as encoders' do; their windows reach to both sides. Suffixes of a
    `nestling.batches.prefix_sharing.SharedPrefixChunk`, which documents the arguments, attend to their prefix as well.
    On a GPU in half precision this is torch's `varlen_attn` (not yet run on a GPU). On a CPU, and in other dtypes,
    which `varlen_attn` does not support, it is one call of SDPA for each segment.
    """
    causal = getattr(module, "is_causal", True)  # as transformers' own functions ask
    if cu_seqlens_q is None:
        if attention_mask is None and sliding_window is not None and sliding_window < query.shape[2]:
            attention_mask = visible(0, query.shape[2], query.device, sliding_window, causal=causal)
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
        return output, None
    dtype = autocast_dtype(query)
    if query.device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        attended = _segment_by_segment(
            query, key, value, cu_seqlens_q, prefixes, scaling, sliding_window, causal=causal
        )
        return attended, None
    q, k, v = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))  # [T, heads, d]
    if key_positions is not None:
        k, v = k[key_positions], v[key_positions]  # [K, heads, d]
    if cu_seqlens_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q
    cu_seqlens, max_seqlens = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return _varlen_kernel(q, k, v, cu_seqlens, max_seqlens, scaling, sliding_window, causal=causal)[None], None


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
    window: int | None = None,
    *,
    causal: bool = True,
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
    reach = -1 if window is None else window - 1
    seen = (reach, 0 if causal else reach)  # before and after the query; the last is aligned with the last key
    output = varlen_attn(query, key, value, *cu_seqlens, *max_seqlens, scale=scaling, window_size=seen, **grouped)
    return cast(Tensor, output)


def _segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    prefixes: Sequence[int],
    scaling: float | None,
    window: int | None = None,
    *,
    causal: bool = True,
) -> Tensor:
    """SDPA of each segment, [1, T, heads, d] in the dtype of `query`; computed in float32, as `sdpa_in_float32`."""
    lengths = cu_seqlens_q.diff().tolist()
    wide = torch.promote_types(query.dtype, torch.float32)
    queries, keys, values = (each.to(wide).split(lengths, dim=2) for each in (query, key, value))
    attend = partial(nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for i, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
            prefix = prefixes[i] if prefixes else -1
            if prefix >= 0:
                k, v = (torch.cat([each[prefix], each[i]], dim=2) for each in (keys, values))
            before = k.shape[2] - lengths[i]
            if before or (window is not None and window < lengths[i]):
                mask = visible(before, lengths[i], query.device, window, causal=causal)
                outputs.append(attend(q, k, v, attn_mask=mask))
            else:
                outputs.append(attend(q, k, v, is_causal=causal))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous().to(query.dtype)


def visible(
    before: int, length: int, device: torch.device, window: int | None = None, *, causal: bool = True
) -> Tensor:
    """[length, before + length] bool: tokens attend to those before the text, and causally to the text itself.

    With a `window`, only to themselves and the `window - 1` tokens before them. Unless it is `causal`, to those after
    them as well, likewise.
    """
    mask = torch.ones(length, before + length, dtype=torch.bool, device=device)
    reach = before + length if window is None else window - 1
    return mask.tril_(before + (0 if causal else reach)).triu_(before - reach)


def mask_of_padding(*, attention_mask: Tensor | None = None, **settings: Any) -> Tensor | None:
    """The mask function of `varlen`: SDPA's for padded texts of encoders.

    Causal models are given no mask: they need none for padding on the right, nor with `cu_seqlens_q`.
    """
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)
