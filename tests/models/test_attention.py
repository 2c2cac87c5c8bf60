"""What a GPU's kernel is given, and what it would make of it, with a stand-in that is as strict."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen

from nestling.batches.groups import join_groups
from nestling.models.attention import _packed, _text_by_text, computing_type, continuing_mask, varlen_attention

GROUPS = [[[*range(20), 1, 2], [*range(20), 3, 4, 5], [*range(20), 6]], [[7, 8, 9]]]


def strict_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_cu_seqlens: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """torch's `varlen_attn` as documented: half precision, one type, causal from the bottom right."""
    assert {query.dtype, key.dtype, value.dtype} == {torch.bfloat16}
    assert query_bounds.dtype == key_cu_seqlens.dtype == torch.int32
    assert window_size == (-1, 0)
    assert enable_gqa
    assert (most_queries, most_keys) == (int(query_bounds.diff().max()), int(key_cu_seqlens.diff().max()))
    found = []
    for i in range(len(query_bounds) - 1):
        q = query[query_bounds[i] : query_bounds[i + 1]].float().transpose(0, 1)
        k, v = (each[key_cu_seqlens[i] : key_cu_seqlens[i + 1]].float().transpose(0, 1) for each in (key, value))
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril_(k.shape[1] - q.shape[1])
        found.append(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True))
    return torch.cat(found, dim=1).transpose(0, 1)


def test_the_kernel_gets_one_half_type_and_gives_what_text_by_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    chunk = join_groups(GROUPS, share=True)
    assert max(chunk.beginnings) >= 0
    q, k, v = (torch.randn(1, heads, chunk.positions, 16).bfloat16() for heads in (4, 2, 2))
    wanted = _text_by_text(q.float(), k.float(), v.float(), chunk.cu_seqlens, chunk.beginnings, 0.3)
    rows = [each[0].transpose(0, 1) for each in (q, k, v)]
    cu_seqlens, most = (chunk.cu_seqlens, chunk.key_cu_seqlens), (chunk.longest, chunk.most_keys)
    found = _packed(rows[0], rows[1][chunk.keys], rows[2][chunk.keys], cu_seqlens, most, 0.3)
    torch.testing.assert_close(found, wanted[0])


class OnGpu:
    """A tensor's stand-in that says that it is on a GPU; what is made of it is on the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device, self.dtype = tensor, torch.device("cuda"), tensor.dtype

    def __getitem__(self, index: int) -> Tensor:
        return self.tensor[index]


def on_gpu(tensors: list[Tensor], **arguments: Any) -> Tensor:
    q, k, v = (cast(Tensor, OnGpu(each)) for each in tensors)
    return varlen_attention(nn.Module(), q, k, v, None, **arguments)[0]


def test_full_tuning_under_autocast_runs_the_kernel_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of queries and keys that hold float32 weights widen them, and values stay in bfloat16."""
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    monkeypatch.setattr("nestling.models.attention.computing_type", lambda tensor: torch.bfloat16)
    chunk = join_groups(GROUPS, share=True)
    q, k, v = (torch.randn(1, heads, chunk.positions, 16) for heads in (4, 2, 2))
    found = on_gpu([q, k, v.bfloat16()], scaling=0.3, **chunk.attention_arguments())
    rounded = [each.bfloat16().float() for each in (q, k, v)]
    wanted = _text_by_text(rounded[0], rounded[1], rounded[2], chunk.cu_seqlens, chunk.beginnings, 0.3)
    torch.testing.assert_close(found, wanted)


def test_float32_on_a_gpu_does_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what evaluation and `Reranker.from_pretrained` compute in by default."""
    seen: list[Any] = []
    monkeypatch.setattr(varlen, "varlen_attn", strict_kernel)
    monkeypatch.setattr("nestling.models.attention._text_by_text", lambda *inputs: seen.append(inputs))
    chunk = join_groups(GROUPS, share=True)
    on_gpu([torch.randn(1, heads, chunk.positions, 16) for heads in (4, 2, 2)], **chunk.attention_arguments())
    assert len(seen) == 1


def test_the_computing_type_is_that_of_autocast_where_it_is_on() -> None:
    tensor = torch.zeros(1)
    assert computing_type(tensor) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert computing_type(tensor) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert computing_type(tensor) == torch.float32


def test_the_mask_of_a_continuing_text_lies_beside_its_queries() -> None:
    assert continuing_mask(2, 2, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]
    assert continuing_mask(2, 2, torch.device("meta")).device.type == "meta"
