"""NESTLING_BF16_RESIDUAL: hidden states are bfloat16 between layers, in precision bf16 alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nestling.batches.packing import Chunk
from nestling.gpu import BF16_RESIDUAL
from nestling.models.compiled_layers import transformer_layers
from nestling.models.embedder import Embedder


def embeddings(model: Path, precision: torch.dtype) -> tuple[Tensor, set[torch.dtype]]:
    """Of two texts, and the dtypes of what layers receive."""
    embedder = Embedder.from_pretrained(model, dtype=torch.float32, precision=precision)
    seen: set[torch.dtype] = set()
    for layer in transformer_layers(embedder):
        layer.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    chunk = Chunk(torch.arange(5, 23).view(2, 9), torch.tensor([9, 5]), padded=True)
    return embedder(chunk).detach(), seen


def test_hidden_states_are_bfloat16_if_asked_for(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, exactly = embeddings(qwen3, torch.float32)
    plain, plainly = embeddings(qwen3, torch.bfloat16)
    monkeypatch.setenv(BF16_RESIDUAL, "1")
    unchanged, _ = embeddings(qwen3, torch.float32)
    rounded, roundly = embeddings(qwen3, torch.bfloat16)
    assert exactly == plainly == {torch.float32}
    assert roundly == {torch.bfloat16}
    assert torch.equal(unchanged, exact)
    apart = {each: (1 - cosine_similarity(found, exact)).max().item() for each, found in ((1, plain), (2, rounded))}
    assert 0 < apart[2] < 1e-3
    assert apart[2] < 10 * apart[1]
