"""Modules of sentence-transformers behind the pooling, against sentence-transformers itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
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


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            dense(48, 32, "torch.nn.modules.activation.PReLU"),
            "activation_function is '.*PReLU'; expected one of torch.nn: I",
        ),
        (dense(48, 32, "os.system"), "activation_function is 'os.system'; expected one of torch.nn"),
        (dense(64, 32), "in_features is 64, and 48 dimensions come before it; name the pooling"),
        (("LayerNorm", {"dimension": 24}), "dimension is 24, and 48 dimensions come before it"),
        (
            dense(48, 32, module_input_name="token_embeddings"),
            "module_input_name is 'token_embeddings'; expected sentence",
        ),
        (("Normalize", {"module_output_name": "other"}), "module_output_name is 'other'; expected sentence_embedding"),
        (("Dropout", {"dropout": 2}), "dropout is 2, expected 0 <= dropout < 1"),
        (
            ("Dense", {"in_features": "48", "bias": True, "out_features": 3}),
            "in_features is '48', expected a whole number",
        ),
        (
            ("Dense", {"in_features": 48, "bias": True, "out_features": 0}),
            "out_features is 0, expected a whole number abo",
        ),
    ],
)
def test_modules_that_cannot_be_reproduced(tmp_path: Path, module: tuple[str, Any], message: str) -> None:
    folder = tiny_headed_bert(tmp_path, [("Normalize", {})])
    listed = json.loads((folder / "modules.json").read_text())
    listed[2] |= {"path": "own", "type": f"sentence_transformers.models.{module[0]}"}
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "own").mkdir()
    (folder / "own" / "config.json").write_text(json.dumps(module[1]))
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            ["Transformer", "Dense", "Pooling"],
            "the modules are Transformer, Dense, Pooling; expected Transformer, Pooling",
        ),
        (["Transformer", "Dense"], "the modules are Transformer, Dense; expected"),
        (["Transformer", "Pooling", "Pooling"], "the modules are Transformer, Pooling, Pooling; expected"),
        (["Pooling", "Transformer"], "the modules are Pooling, Transformer; expected"),
    ],
)
def test_modules_in_another_order(tmp_path: Path, kinds: list[str], message: str) -> None:
    folder = tiny_headed_bert(tmp_path, [dense(48, 32)])
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense_own"}
    listed = [{"path": paths[kind], "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder)


def test_weights_of_modules_that_are_missing_or_others(tmp_path: Path) -> None:
    folder = tiny_headed_bert(tmp_path, [dense(48, 32)])
    file = folder / "2_Dense_own" / "model.safetensors"
    save_file({"linear.weight": torch.zeros(32, 48)}, file)
    with pytest.raises(ValueError, match=r"2_Dense_own: its weights are .*expected .*'linear.bias': \(32,\)"):
        Embedder.from_pretrained(folder)
    torch.save(
        {"linear.weight": torch.ones(32, 48), "linear.bias": torch.zeros(32)},
        folder / "2_Dense_own" / "pytorch_model.bin",
    )
    file.unlink()
    assert Embedder.from_pretrained(folder).head.state_dict()["0.linear.weight"].eq(1).all()
    (folder / "2_Dense_own" / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="2_Dense_own: no weights; expected"):
        Embedder.from_pretrained(folder)


def test_the_head_computes_in_float32_and_keeps_dropout_apart(tmp_path: Path) -> None:
    modules = [("Dropout", {"dropout": 0.5}), dense(48, 32)]
    folder = tiny_headed_bert(tmp_path, modules)
    embedder = Embedder.from_pretrained(folder, precision=torch.bfloat16).train()
    chunk = pack(embedder.text_tokenizer(["find files"], 16).ids, 64, 0).chunks[0]
    assert embedder(chunk).dtype == torch.float32
    assert torch.equal(embedder(chunk), embedder(chunk))
    kept = Embedder.from_pretrained(folder, dropout=None).train()
    assert not torch.equal(kept.head(torch.ones(4, 48)), kept.head(torch.ones(4, 48)))
    assert embedder.head.settings[0].settings == {"dropout": 0.5}
    assert embedder.head.bfloat16()(torch.ones(2, 48)).dtype == torch.float32  # as FSDP2 may gather it
