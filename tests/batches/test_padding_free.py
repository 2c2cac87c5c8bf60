"""Packed texts have the embeddings and gradients of padded ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import PackedChunk, TokenBatch, concatenate, pack
from nestling.models.embedder import Embedder
from nestling.models.pooling import Pooling
from nestling.training.cached import ActivationBudget, cached_backward

LENGTHS = [5, 17, 3, 9, 17, 8, 2, 11]


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 60, (length,), generator=generator).tolist() for length in LENGTHS]


def test_packed_texts_by_hand() -> None:
    chunk = concatenate([[7, 8, 9], [5, 6]])
    assert chunk.input_ids.tolist() == [[7, 8, 9, 5, 6]]
    assert chunk.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert chunk.cu_seqlens.tolist() == [0, 3, 5]
    assert chunk.cu_seqlens.dtype == torch.int32
    assert (chunk.max_seqlen, chunk.positions) == (3, 5)
    assert [half.input_ids.tolist() for half in chunk.halves()] == [[[7, 8, 9]], [[5, 6]]]


@pytest.mark.parametrize("padding_free", [False, True])
def test_chunks_have_at_most_chunk_tokens_positions_and_return_their_ids(padding_free: bool) -> None:
    batch = pack(texts(), 24, 0, padding_free=padding_free)
    assert all(chunk.positions <= 24 for chunk in batch.chunks)
    assert [length for chunk in batch.chunks for length in chunk.lengths.tolist()] == sorted(LENGTHS, reverse=True)
    assert batch.ids() == texts()
    halved = batch.halved()
    assert halved.ids() == texts()
    assert max(len(chunk.lengths) for chunk in halved.chunks) <= -(-max(len(c.lengths) for c in batch.chunks) // 2)
    if padding_free:
        assert sum(chunk.positions for chunk in batch.chunks) == sum(LENGTHS)


def gradients(embedder: Embedder, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    embedder.zero_grad()
    seen: list[Tensor] = []

    def loss_of(embeddings: Tensor) -> Tensor:
        seen.append(embeddings.detach().clone())
        return (embeddings @ embeddings.T).tanh().sum()

    backend = Plain(embedder, adamw(embedder, learning_rate=1e-3, weight_decay=0.0))
    cached_backward(backend, batch, loss_of, ActivationBudget(30.0, 1.0))
    return seen[0], {name: each.grad for name, each in embedder.named_parameters() if each.grad is not None}


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return ((found - expected).norm() / expected.norm()).item()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_packed_equals_padded(pooling: Pooling, qwen3: Path) -> None:
    embedder = Embedder.from_pretrained(
        qwen3, dtype=torch.float64, attn_implementation="varlen", pooling=pooling
    ).train()
    assert embedder.padding_free
    padded = Embedder.from_pretrained(qwen3, dtype=torch.float64, attn_implementation="sdpa", pooling=pooling).train()
    assert not padded.padding_free
    batch = pack(texts(), 40, 0, padding_free=True)
    assert any(isinstance(chunk, PackedChunk) and len(chunk.lengths) > 1 for chunk in batch.chunks)
    found, gradient = gradients(embedder, batch)
    wanted, expected = gradients(padded, pack(texts(), 40, 0))
    tolerance = 1e-6 if pooling == "mean" else 1e-12  # means are taken in float32
    assert error(found, wanted) < tolerance
    assert gradient.keys() == expected.keys()
    assert error(flat(gradient), flat(expected)) < tolerance
    # Evaluation pads: the same attention serves it.
    evaluated = torch.cat([embedder(chunk) for chunk in pack(texts(), 40, 0).chunks])
    assert error(evaluated[pack(texts(), 40, 0).position], wanted) < tolerance


def test_a_cache_or_a_mask_would_silently_mix_packed_texts(qwen3: Path) -> None:
    """This is why the embedder passes neither to transformers for packed texts."""
    model = AutoModel.from_pretrained(qwen3, dtype=torch.float64, attn_implementation="sdpa").eval()
    chunk = concatenate(texts())
    ends = chunk.cu_seqlens[1:].long() - 1

    def states(**arguments: object) -> Tensor:
        with torch.no_grad():
            hidden: Tensor = model(input_ids=chunk.input_ids, position_ids=chunk.position_ids, **arguments)[0]
        return hidden[0, ends]

    with torch.no_grad():
        alone = torch.stack([model(input_ids=torch.tensor([text]), use_cache=False)[0][0, -1] for text in texts()])
    torch.testing.assert_close(states(use_cache=False), alone)
    for wrong in (states(use_cache=True), states(use_cache=False, attention_mask=torch.ones_like(chunk.input_ids))):
        assert ((wrong - alone).norm() / alone.norm()).item() > 0.1
