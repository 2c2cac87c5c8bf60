import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from architectures import decoder, encoder
from family_models import write_embedder
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer

from nestling.batches.packing import concatenate, pack, pad
from nestling.batches.prompts import TextTokenizer, instruct
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder, read_width
from nestling.models.pooling import POOL, pool_packed, pool_padded
from tiny import tiny_bert, tiny_qwen3

TEXTS = ["find all files", "short", "向量检索", "def f(x):\n    return x", "word " * 300, "a"]


def packed(embedder: Embedder, texts: list[str], chunk_tokens: int, max_length: int = 64) -> torch.Tensor:
    ids = embedder.text_tokenizer(texts, max_length).ids
    batch = pack(ids, chunk_tokens, embedder.text_tokenizer.pad_id)
    return torch.cat([embedder(chunk) for chunk in batch.chunks])[batch.position]


def test_query_prompt_has_no_space_after_query() -> None:
    assert instruct("Find it") + "files" == "Instruct: Find it\nQuery:files"


@pytest.mark.parametrize("kind", ["query", "document"])
def test_qwen3_equals_sentence_transformers(qwen3: Path, kind: str) -> None:
    ours = Embedder.from_pretrained(qwen3).encode(TEXTS, kind=kind, max_length=64)  # type: ignore[arg-type]
    reference = SentenceTransformer(str(qwen3), device="cpu")
    reference.max_seq_length = 64
    theirs = torch.tensor(reference.encode(TEXTS, prompt_name=kind))
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoders_equal_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    folder = tiny_bert(tmp_path, pooling, prompts={"query": "query: ", "document": "passage: "})  # type: ignore[arg-type]
    embedder = Embedder.from_pretrained(folder)
    assert embedder.pooling == pooling
    reference = SentenceTransformer(str(folder), device="cpu")
    for kind in ("query", "document"):
        theirs = torch.tensor(reference.encode(TEXTS, prompt_name=kind))
        ours = embedder.encode(TEXTS, kind=kind, max_length=reference.max_seq_length)
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_the_newer_pooling_file_is_read(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 48, "pooling_mode": "cls"}')
    assert Embedder.from_pretrained(folder).pooling == "cls"
    assert Embedder.from_pretrained(folder, pooling="mean").pooling == "mean"


def test_what_cannot_be_reproduced_is_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_middle": true}')
    with pytest.raises(ValueError, match="asks for cls_token and middle; supported are cls_token, max_tokens"):
        Embedder.from_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_CNN", "type": "sentence_transformers.models.CNN"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="CNN is not supported; expected Transformer, Pooling, Dense, LayerNorm"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize(
    "own", ["evil.Pooling", "sentence_transformers.evil.Pooling", "modeling.Transformer", "Normalize"]
)
def test_modules_of_the_same_last_name_are_refused(tmp_path: Path, own: str) -> None:
    folder = tiny_bert(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    at = next(each for each in modules if each["type"].endswith(own.rpartition(".")[2]))
    at["type"] = own
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"modules.json: {own} is not supported; expected Transformer, Pooling, Dense"):
        Embedder.from_pretrained(folder)


def test_modules_as_sentence_transformers_6_names_them(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "model", "cls", normalize=False)
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    assert "sentence_transformers.sentence_transformer.modules" in (tmp_path / "saved" / "modules.json").read_text()
    embedder = Embedder.from_pretrained(tmp_path / "saved")
    assert (embedder.pooling, embedder.normalize) == ("cls", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "modules.json: expected a list of modules"),
        ("[1]", "modules.json: expected a list of modules"),
        ('[{"type": "sentence_transformers.models.Pooling"}]', "modules.json: expected a list of modules"),
        ('[{"type": "sentence_transformers.models.Pooling", "path": "../secret"}]', "lies outside the model's"),
        ('[{"type": "sentence_transformers.models.Pooling", "path": "/etc"}]', "lies outside the model's"),
        ('[{"type": ', r"modules.json: not valid JSON: .*; fetch the model again"),
        ("[" * 100_000, r"modules.json: not valid JSON: maximum recursion"),
    ],
)
def test_broken_lists_of_modules(tmp_path: Path, content: str, message: str) -> None:
    folder = tiny_bert(tmp_path)
    (folder / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained(folder)


def test_the_tokenizer_of_a_base_model_appends_the_end_token(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path, sentence_transformers=False)
    embedder = Embedder.from_pretrained(folder)
    end = embedder.text_tokenizer.backend.token_to_id("<|endoftext|>")
    assert (embedder.pooling, embedder.text_tokenizer.appended_end) == ("last", "<|endoftext|>")
    assert {ids[-1] for ids in embedder.text_tokenizer(TEXTS, 16).ids} == {end}
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][-1] != end


def test_truncation_keeps_the_end_and_is_counted(qwen3: Path) -> None:
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(qwen3), require_end=True)
    cut = tokenizer(["word " * 300, "word", "word " * 100_000], 16)
    assert (cut.truncated, [len(ids) for ids in cut.ids][::2]) == (2, [16, 16])
    assert {ids[-1] for ids in cut.ids} == {tokenizer.end_id}
    assert cut.ids[0] == cut.ids[2]


def test_a_cut_before_tokenisation_loses_no_token(bert: Path) -> None:
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(bert), require_end=False)
    spaces = "a" + " " * 5000 + "b"
    assert tokenizer([spaces], 8).ids == tokenizer(["a b"], 8).ids


@pytest.mark.parametrize("folder", ["qwen3", "bert"])
def test_chunks_change_neither_value_nor_gradient(folder: str, request: pytest.FixtureRequest) -> None:
    embedder = Embedder.from_pretrained(request.getfixturevalue(folder), dtype=torch.float64)
    direction = torch.randn(len(TEXTS), embedder.dim)
    results = []
    for chunk_tokens in (1, 100, 10_000):
        embedder.zero_grad()
        embeddings = packed(embedder, TEXTS, chunk_tokens)
        (embeddings * direction).sum().backward()
        gradients = [each.grad.clone() for each in embedder.parameters() if each.grad is not None]
        results.append((embeddings.detach(), gradients))
    for embeddings, gradients in results[1:]:
        torch.testing.assert_close(embeddings, results[0][0], atol=1e-6, rtol=1e-6)
        for mine, first in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(mine, first, atol=1e-6, rtol=1e-6)


def test_pack_sorts_by_length_and_fills_chunks() -> None:
    batch = pack([[1], [1, 2, 3], [1, 2], [4, 5, 6]], 6, pad_id=9)
    assert [chunk.input_ids.tolist() for chunk in batch.chunks] == [[[1, 2, 3], [4, 5, 6]], [[1, 2], [1, 9]]]
    assert [chunk.lengths.tolist() for chunk in batch.chunks] == [[3, 3], [2, 1]]
    assert batch.position.tolist() == [3, 0, 2, 1]
    assert (batch.tokens, [chunk.padded for chunk in batch.chunks]) == (9, [False, True])


def test_pooling_by_hand() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    lengths = torch.tensor([2, 3])
    assert POOL["last"](hidden, lengths).tolist() == [[2, 3], [10, 11]]
    assert POOL["cls"](hidden, lengths).tolist() == [[0, 1], [6, 7]]
    torch.testing.assert_close(POOL["mean"](hidden, lengths), torch.tensor([[1.0, 2.0], [8.0, 9.0]]))
    rows, cu_seqlens = torch.cat([hidden[0, :2], hidden[1]])[None], torch.tensor([0, 2, 5], dtype=torch.int32)
    assert POOL["max"](hidden, lengths).tolist() == [[2, 3], [10, 11]]
    torch.testing.assert_close(POOL["mean_sqrt_len_tokens"](hidden, lengths)[0], torch.tensor([2.0, 4.0]) / 2**0.5)
    torch.testing.assert_close(POOL["weightedmean"](hidden, lengths)[0], torch.tensor([4 / 3, 7 / 3]))
    starts = torch.tensor([1, 9])  # of the second text at least the last token is pooled
    assert POOL["mean"](hidden, lengths, starts).tolist() == [[2, 3], [10, 11]]
    for pooling, first in product([*POOL, "cls+max+weightedmean"], (None, starts, torch.tensor([0, 1]))):
        padded, packed_texts = hidden.clone().requires_grad_(), rows.clone().requires_grad_()
        expected = pool_padded(padded, lengths, pooling, first)
        found = pool_packed(packed_texts, cu_seqlens, pooling, first)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
        assert padded.grad is not None
        assert packed_texts.grad is not None
        torch.testing.assert_close(packed_texts.grad[0], torch.cat([padded.grad[0, :2], padded.grad[1]]))


def test_an_unknown_pooling_is_refused_for_padded_and_packed_texts(qwen3: Path) -> None:
    embedder = Embedder.from_pretrained(qwen3, attn_implementation="varlen")
    embedder.pooling = "cls+middle"
    for chunk in (pad([[5, 6], [7]], 0), concatenate([[5, 6], [7]])):
        with pytest.raises(ValueError, match="the pooling is 'cls\\+middle'; expected one of last, mean, cls, max"):
            embedder(chunk)


def test_dropout_is_set_but_the_config_keeps_the_models_own(bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert).train()
    torch.testing.assert_close(packed(embedder, TEXTS, 500), packed(embedder, TEXTS, 500), atol=0, rtol=0)
    assert embedder.config.hidden_dropout_prob == 0.1
    kept = Embedder.from_pretrained(bert, dropout=None).train()
    assert not torch.equal(packed(kept, TEXTS, 500), packed(kept, TEXTS, 500))


def test_bf16_computes_over_float32_weights(bert: Path) -> None:
    exact = Embedder.from_pretrained(bert)
    rounded = Embedder.from_pretrained(bert, precision=torch.bfloat16)
    assert {each.dtype for each in rounded.parameters()} == {torch.float32}
    embeddings = packed(rounded, TEXTS, 500)
    assert embeddings.dtype == torch.float32
    cosines = cosine_similarity(embeddings, packed(exact, TEXTS, 500))
    assert 0.999 < cosines.min() < 0.9999999


def test_lora_trains_adapters_only_and_leaves_the_pooler(bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert)
    embedder.backbone = attach_lora(embedder.backbone, r=4, alpha=8, dropout=0.0)
    names = [name for name, each in embedder.named_parameters() if each.requires_grad]
    assert all("lora_" in name for name in names)
    assert not any("pooler" in name for name in names)
    assert len(names) == 2 * 6 * 2  # A and B of six linear layers in each of two blocks
    packed(embedder, TEXTS, 500).sum().backward()
    assert all(each.grad is not None for each in embedder.parameters() if each.requires_grad)


def test_unknown_lora_targets_are_refused(bert: Path) -> None:
    with pytest.raises(ValueError, match=r"lora.target_modules \['q_prj'\]"):
        attach_lora(Embedder.from_pretrained(bert).backbone, r=4, alpha=8, dropout=0.0, target_modules=["q_prj"])


@pytest.mark.parametrize("folder", ["qwen3", "bert"])
def test_gradient_checkpointing_changes_nothing(folder: str, request: pytest.FixtureRequest) -> None:
    results = []
    for checkpointing in (False, True):
        embedder = Embedder.from_pretrained(request.getfixturevalue(folder)).train()
        if checkpointing:
            embedder.checkpoint_activations_above(0)
        packed(embedder, TEXTS, 500).square().sum().backward()
        results.append([each.grad for each in embedder.parameters() if each.grad is not None])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_width_is_known_without_the_weights(qwen3: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(qwen3, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert read_width(copy) == Embedder.from_pretrained(qwen3).dim


@pytest.mark.parametrize("limit", [40, None])
def test_the_limit_of_a_directory_is_that_of_sentence_transformers(tmp_path: Path, limit: int | None) -> None:
    folder = tiny_bert(tmp_path)
    if limit is None:
        (folder / "sentence_bert_config.json").unlink()
    else:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
    found = Embedder.from_pretrained(folder).max_seq_length
    assert found == SentenceTransformer(str(folder), device="cpu").max_seq_length == (limit or 128)


def test_dropout_is_0_by_whatever_name_and_a_loaded_model_stays_in_evaluation_mode(tmp_path: Path) -> None:
    """GPT-2 calls it `resid_pdrop`, and trained with it though the setting said 0."""
    folder = write_embedder(decoder("gpt2", padding_side="right"), tmp_path / "gpt2")
    embedder = Embedder.from_pretrained(folder)
    assert {each.p for each in embedder.modules() if isinstance(each, torch.nn.Dropout)} == {0.0}
    assert embedder.config.resid_pdrop == 0.1  # an export has the model's own
    assert not any(module.training for module in embedder.backbone.modules())


def test_gradient_checkpointing_is_refused_where_there_is_none_and_texts_are_long_enough(tmp_path: Path) -> None:
    """MPNet could not be trained at all: the default is 2048 tokens, and it reads 512."""
    embedder = Embedder.from_pretrained(write_embedder(encoder("mpnet"), tmp_path / "mpnet"))
    embedder.checkpoint_activations_above(embedder.max_positions)
    with pytest.raises(ValueError, match="gradient_checkpointing_length: 64: mpnet has no gradient checkpointing"):
        embedder.checkpoint_activations_above(64)
