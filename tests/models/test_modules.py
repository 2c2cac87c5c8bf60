"""Modules of sentence-transformers behind the pooling, against sentence-transformers itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import T5EncoderModel

from nestling.batches.packing import pack
from nestling.models.embedder import Embedder, read_width
from tiny_modules import (
    IDENTITY,
    copy_without_weights,
    dense,
    flags,
    tiny_embedding_gemma,
    tiny_headed_bert,
    tiny_sentence_t5,
    tiny_stella,
)

TEXTS = ["find all files", "short", "向量检索", "def f(x):\n    return x", "word " * 100, "a"]
NEW = "sentence_transformers.sentence_transformer.modules."

HEADS: dict[str, list[tuple[str, Any]]] = {
    "one Dense": [dense(48, 32)],
    "Normalize before two Dense": [
        ("Normalize", {}),
        dense(48, 96, IDENTITY, bias=False),
        dense(96, 24),
        ("Normalize", {}),
    ],
    "LayerNorm": [("LayerNorm", {"dimension": 48}), dense(48, 48, "torch.nn.GELU", use_residual=True)],
    "Dropout and a residual": [("Dropout", {"dropout": 0.3}), dense(48, 40, use_residual=True), ("Normalize", {})],
}


def theirs(folder: Path, kind: str, max_length: int) -> torch.Tensor:
    reference = SentenceTransformer(str(folder), device="cpu")
    reference.max_seq_length = max_length
    return torch.tensor(reference.encode(TEXTS, prompt_name=kind, normalize_embeddings=True))


def assert_equal(folder: Path, **settings: Any) -> Embedder:
    embedder = Embedder.from_pretrained(folder, **settings)
    for kind in ("query", "document"):
        ours = embedder.encode(TEXTS, kind=kind, max_length=48)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs(folder, kind, 48), atol=1e-5, rtol=0)
    return embedder


@pytest.mark.parametrize("name", HEADS)
def test_modules_equal_sentence_transformers(tmp_path: Path, name: str) -> None:
    folder = tiny_headed_bert(tmp_path / "model", HEADS[name])
    embedder = assert_equal(folder)
    assert embedder.normalize == (HEADS[name][-1][0] == "Normalize")
    assert (
        embedder.dim
        == read_width(copy_without_weights(folder, tmp_path / "copy"))
        == embedder.encode(["a"], kind="query", max_length=16).shape[1]
    )


@pytest.mark.parametrize("build", [tiny_embedding_gemma, tiny_stella, tiny_sentence_t5])
def test_families_with_modules(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    embedder = assert_equal(build(tmp_path), attn_implementation="eager")
    assert isinstance(embedder.backbone, T5EncoderModel) == (build is tiny_sentence_t5)
    ids = embedder.text_tokenizer(TEXTS, 48).ids
    results = []
    for chunk_tokens in (1, 100, 10_000):
        batch = pack(ids, chunk_tokens, embedder.text_tokenizer.pad_id)
        results.append(torch.cat([embedder(chunk) for chunk in batch.chunks])[batch.position])
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    "modes",
    [
        ("max_tokens",),
        ("mean_sqrt_len_tokens",),
        ("weightedmean_tokens",),
        ("cls_token",),
        ("cls_token", "mean_tokens", "lasttoken"),
    ],
)
def test_poolings_equal_sentence_transformers(tmp_path: Path, modes: tuple[str, ...], include_prompt: bool) -> None:
    pooling = flags(*modes, include_prompt=include_prompt)
    embedder = assert_equal(tiny_headed_bert(tmp_path, [("Normalize", {})], pooling))
    assert embedder.dim == 48 * len(modes)


def test_names_of_a_pooling_are_concatenated_in_their_order(tmp_path: Path) -> None:
    pooling = {"embedding_dimension": 48, "pooling_mode": ["mean", "cls", "weightedmean"], "include_prompt": False}
    folder = tiny_headed_bert(tmp_path / "model", [dense(144, 32)], pooling)
    assert assert_equal(folder).pooling == "mean+cls+weightedmean"
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert "base.modules.dense.Dense" in (tmp_path / "saved" / "modules.json").read_text()
    assert_equal(tmp_path / "saved")
