"""Variable-length attention: what the GPU kernel gets and returns, by a stand-in on the CPU that checks its inputs."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import (
    AutoModel,
    DebertaV2Config,
    FalconConfig,
    Gemma2Config,
    MPNetConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.masking_utils import sliding_window_causal_mask_function

from nestling.batches.prefix_sharing import pack_groups
from nestling.models.attention import (
    FLOAT32,
    _segment_by_segment,
    _varlen_kernel,
    autocast_dtype,
    model_class,
    resolve_attention,
    varlen_attention,
    visible,
)

GROUPS = [[[*range(20), 1, 2], [*range(20), 3, 4, 5], [*range(20), 6]], [[7, 8, 9]]]


def strict_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """torch's `varlen_attn` as documented: half precision, one type, causal from the bottom right."""
    assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert window_size[1] == 0
    assert enable_gqa
    assert (max_seqlen_q, max_seqlen_k) == (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
    found = []
    for i in range(len(cu_seqlens_q) - 1):
        q = query[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].float().transpose(0, 1)
        k, v = (each[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].float().transpose(0, 1) for each in (key, value))
        before = k.shape[1] - q.shape[1]
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril_(before)
        if window_size[0] >= 0:
            seen = seen.triu_(before - window_size[0])
        found.append(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True))
    return torch.cat(found, dim=1).transpose(0, 1)


def torch_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The signature of torch 2.11, which takes as many heads of keys and values as of queries."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return strict_kernel(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=True
    )


def torch_2_13(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """The signature of torch 2.13, which has to be told that there are fewer heads of keys and values."""
    assert query.shape[1] == key.shape[1] or enable_gqa
    assert cu_seq_k is not None
    return strict_kernel(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=True
    )


def test_the_recorded_signature_of_the_installed_torch_is_the_real_one() -> None:
    names = [*inspect.signature(varlen.varlen_attn).parameters]
    recorded = {"2.11": torch_2_11, "2.13": torch_2_13}.get(torch.__version__.rsplit(".", 1)[0])
    if recorded is None:
        pytest.skip(f"no signature of torch {torch.__version__} is recorded")
    assert [*inspect.signature(recorded).parameters] == names


@pytest.mark.parametrize("kernel", [torch_2_11, torch_2_13])
@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_the_call_fits_the_signatures_of_torch(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], heads: tuple[int, int]
) -> None:
    """A reranker in bfloat16 died with a TypeError on torch 2.11."""
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr("nestling.models.attention.autocast_dtype", lambda tensor: torch.bfloat16)
    chunk = pack_groups(GROUPS, share_prefix=True)
    q, k, v = (torch.randn(1, count, chunk.positions, 16).bfloat16() for count in (heads[0], heads[1], heads[1]))
    found = on_gpu([q, k, v], scaling=0.3, **chunk.attention_arguments())
    wanted = _segment_by_segment(q.float(), k.float(), v.float(), chunk.cu_seqlens_q, chunk.prefixes, 0.3)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("installed", "flash"), [(True, "flash_attention_2"), (False, "sdpa")])
def test_flash_attention_is_asked_of_transformers_and_of_the_model(
    monkeypatch: pytest.MonkeyPatch, installed: bool, flash: str
) -> None:
    """A package of that name may be another version, and some models have no code for it."""
    monkeypatch.setattr("nestling.models.attention.is_flash_attn_2_available", lambda: installed)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for config, wanted, otherwise in [(Qwen3Config(), flash, "sdpa"), (DebertaV2Config(), "eager", "eager")]:
        kind = model_class(AutoModel, config)
        assert resolve_attention("auto", torch.bfloat16, kind) == wanted
        assert resolve_attention("auto", torch.float32, kind) == otherwise


@pytest.mark.parametrize(
    ("config", "asked", "wanted"),
    [
        (Qwen3Config(), "varlen", "varlen"),
        (Qwen3Config(), "auto", FLOAT32),
        (MPNetConfig(), "auto", "eager"),
        (MPNetConfig(), "varlen", "eager"),
        (Gemma2Config(), "varlen", "eager"),
        (FalconConfig(), "varlen", "sdpa"),  # it has SDPA, and calls no function by its name
        (FalconConfig(), "auto", "sdpa"),
    ],
)
def test_auto_and_varlen_are_what_the_model_has(config: PretrainedConfig, asked: str, wanted: str) -> None:
    assert resolve_attention(asked, torch.bfloat16, model_class(AutoModel, config), cpu=True) == wanted


def test_what_the_model_does_not_have_is_refused_by_the_name_of_the_flag() -> None:
    message = "attn_implementation: sdpa, which transformers does not have for MPNetModel; use auto or eager"
    with pytest.raises(ValueError, match=message):
        resolve_attention("sdpa", torch.float32, model_class(AutoModel, MPNetConfig()))


def test_the_kernel_gets_one_half_precision_dtype_and_equals_segment_by_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    chunk = pack_groups(GROUPS, share_prefix=True)
    assert max(chunk.prefixes) >= 0
    q, k, v = (torch.randn(1, heads, chunk.positions, 16).bfloat16() for heads in (4, 2, 2))
    wanted = _segment_by_segment(q.float(), k.float(), v.float(), chunk.cu_seqlens_q, chunk.prefixes, 0.3)
    rows = [each[0].transpose(0, 1) for each in (q, k, v)]
    cu_seqlens, max_seqlens = (chunk.cu_seqlens_q, chunk.cu_seqlens_k), (chunk.max_seqlen_q, chunk.max_seqlen_k)
    found = _varlen_kernel(
        rows[0], rows[1][chunk.key_positions], rows[2][chunk.key_positions], cu_seqlens, max_seqlens, 0.3
    )
    torch.testing.assert_close(found, wanted[0])


class OnGpu:
    """A stand-in for a tensor on a GPU; operations on it return tensors on the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device, self.dtype = tensor, torch.device("cuda"), tensor.dtype

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]


def on_gpu(tensors: list[Tensor], **arguments: Any) -> Tensor:
    q, k, v = (cast(Tensor, OnGpu(each)) for each in tensors)
    return varlen_attention(nn.Module(), q, k, v, None, **arguments)[0]


def test_full_tuning_under_autocast_runs_the_kernel_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms with float32 weights return queries and keys in float32; values are in bfloat16."""
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    monkeypatch.setattr("nestling.models.attention.autocast_dtype", lambda tensor: torch.bfloat16)
    chunk = pack_groups(GROUPS, share_prefix=True)
    q, k, v = (torch.randn(1, heads, chunk.positions, 16) for heads in (4, 2, 2))
    found = on_gpu([q, k, v.bfloat16()], scaling=0.3, **chunk.attention_arguments())
    rounded = [each.bfloat16().float() for each in (q, k, v)]
    wanted = _segment_by_segment(rounded[0], rounded[1], rounded[2], chunk.cu_seqlens_q, chunk.prefixes, 0.3)
    torch.testing.assert_close(found, wanted)


def test_float32_on_a_gpu_does_not_use_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation and `Reranker.from_pretrained` compute in float32 by default."""
    seen: list[Any] = []
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    monkeypatch.setattr("nestling.models.attention._segment_by_segment", lambda *inputs, causal: seen.append(inputs))
    chunk = pack_groups(GROUPS, share_prefix=True)
    on_gpu([torch.randn(1, heads, chunk.positions, 16) for heads in (4, 2, 2)], **chunk.attention_arguments())
    assert len(seen) == 1


def test_autocast_dtype_is_that_of_the_tensor_without_autocast() -> None:
    tensor = torch.zeros(1)
    assert autocast_dtype(tensor) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(tensor) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert autocast_dtype(tensor) == torch.float32


def test_visible() -> None:
    assert visible(2, 2, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(2, 2, torch.device("cpu"), 2).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]
    assert visible(2, 2, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("window", [1, 3, 7, 40])
def test_a_sliding_window_goes_over_a_shared_prefix_on_both_ways(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Segment by segment and by the kernel, against prompts that run alone with transformers' windows."""
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    monkeypatch.setattr("nestling.models.attention.autocast_dtype", lambda tensor: torch.bfloat16)
    chunk = pack_groups(GROUPS, share_prefix=True)
    tables = [torch.randn(32, heads, 16).bfloat16().float() for heads in (4, 2, 2)]
    q, k, v = (table[chunk.input_ids].transpose(1, 2) for table in tables)
    settings: dict[str, Any] = {"scaling": 0.3, "sliding_window": window, **chunk.attention_arguments()}
    on_cpu = varlen_attention(nn.Module(), q, k, v, None, **settings)[0]
    torch.testing.assert_close(on_gpu([each.bfloat16() for each in (q, k, v)], **settings), on_cpu)
    prompts = [prompt for group in GROUPS for prompt in group]
    for prompt, last in zip(prompts, chunk.last_positions.tolist(), strict=True):
        q, k, v = (table[torch.tensor([prompt])].transpose(1, 2) for table in tables)
        mask = sliding_window_causal_mask_function(window)
        positions = torch.arange(len(prompt))
        seen = mask(0, 0, positions[:, None], positions)
        alone = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(on_cpu[0, last], alone[0, :, -1])
        wide = (each.repeat_interleave(2, dim=1) for each in (k, v))
        padded = varlen_attention(nn.Module(), q, *wide, None, scaling=0.3, sliding_window=window)[0]
        torch.testing.assert_close(padded[0, -1], alone[0, :, -1])
