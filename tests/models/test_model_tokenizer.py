"""Tokenizers of other models: their ids, and those of their exports, against transformers and sentence-transformers."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from nestling.batches.packing import pack
from nestling.batches.prompts import TextTokenizer, with_end
from nestling.data_checks.tokens import TokenCounter
from nestling.export.embedder import export_embedder
from nestling.models import model_tokenizer
from nestling.models.embedder import Embedder
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.reranker import Reranker
from nestling.models.token_model import POSITIONS_BEHIND_PADDING, max_positions
from tiny import tiny_bert, tiny_qwen3
from trained import with_noise

TEXTS = ["find all files", "向量检索", "a", "Find ALL Files", "word " * 60]
BOS, EOS = "<|begin|>", "<|end|>"
LENGTHS = {"query_max_length": 32, "document_max_length": 32}


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_bos(model: Path, tokenizer_class: str = "PreTrainedTokenizerFast", **settings: Any) -> Path:
    """A decoder as Llama-3: BOS by template behind a byte-level processor, an EOS that nothing appends, no padding."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens([BOS, EOS])
    template = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    text = tokenizer.to_str().replace("<|endoftext|>", "<|another|>")
    (model / "tokenizer.json").write_text(text)
    named = {"tokenizer_class": tokenizer_class, "bos_token": BOS, "eos_token": EOS, "model_max_length": 512}
    (model / "tokenizer_config.json").write_text(json.dumps(named | settings))
    edited(model / "config.json", vocab_size=tokenizer.get_vocab_size())
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return model


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    return with_bos(tiny_qwen3(tmp_path / "llama3", sentence_transformers=False))


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """The same in the way of Llama-2 and Mistral: no bytes but characters behind a mark for white space."""
    model = tiny_qwen3(tmp_path / "mistral", sentence_transformers=False)
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *string.ascii_letters]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(model / "tokenizer.json"))
    return with_bos(model, "LlamaTokenizer", unk_token="<unk>", legacy=False)


@pytest.mark.parametrize("kind", ["llama3", "mistral"])
def test_an_end_behind_bos_is_exported_as_it_was_trained(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    own = AutoTokenizer.from_pretrained(model)
    embedder = with_noise(Embedder.from_pretrained(model))
    expected = [[*own(text)["input_ids"], own.eos_token_id] for text in TEXTS]
    assert embedder.text_tokenizer(TEXTS, 512).ids == expected
    assert (embedder.text_tokenizer.appended_end, expected[0][0]) == (EOS, own.bos_token_id)
    assert export_embedder(embedder, tmp_path / "final", **LENGTHS).failures == []
    exported = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert [exported(text)["input_ids"] for text in TEXTS] == expected
    assert exported.pad_token == EOS
    settings = json.loads((tmp_path / "final" / "tokenizer_config.json").read_text())
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (True, True)
    reference = SentenceTransformer(str(tmp_path / "final"), device="cpu")
    theirs = torch.tensor(reference.encode(TEXTS, prompt_name="query"))
    ours = embedder.encode(TEXTS, kind="query", max_length=32)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    again = Embedder.from_pretrained(tmp_path / "final")
    assert (again.text_tokenizer.appended_end, again.text_tokenizer.end_id) == (None, own.eos_token_id)
    assert again.text_tokenizer(TEXTS, 512).ids == expected


def test_an_end_in_pairs_and_without_a_template(llama3: Path, qwen3_base: Path) -> None:
    backend = with_end(Tokenizer.from_file(str(llama3 / "tokenizer.json")), EOS)
    assert backend.encode("a", "b").tokens == [BOS, "a", EOS, BOS, "b", EOS]
    plain = with_end(Tokenizer.from_file(str(qwen3_base / "tokenizer.json")), "<|im_end|>")
    assert plain.encode("a").tokens == ["a", "<|im_end|>"]
    plain.post_processor = None
    assert with_end(plain, "<|im_end|>").encode("a").tokens == ["a", "<|im_end|>"]


def test_files_that_ask_for_the_last_token_are_taken_at_their_word(llama3: Path, tmp_path: Path) -> None:
    """Without an end token, as sentence-transformers reads it; with one where the publisher asked for it."""
    model = tiny_qwen3(tmp_path / "published")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        shutil.copyfile(llama3 / name, model / name)
    edited(model / "tokenizer_config.json", pad_token="<|another|>")
    embedder = Embedder.from_pretrained(model)
    assert (embedder.pooling, embedder.text_tokenizer.appended_end, embedder.text_tokenizer.end_id) == (
        "last",
        None,
        None,
    )
    theirs = torch.tensor(SentenceTransformer(str(model), device="cpu").encode(TEXTS[:4], prompt_name="document"))
    ours = embedder.encode(TEXTS[:4], kind="document", max_length=512)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    edited(model / "tokenizer_config.json", add_eos_token=True)
    assert Embedder.from_pretrained(model).text_tokenizer.appended_end == EOS
    assert TokenCounter.from_pretrained(str(model))(["a"], "document").tolist() == [3]


def test_the_end_token_learns_where_it_is_also_the_padding(tmp_path: Path) -> None:
    """transformers' padding_idx gives its row no gradient; here it is the one of a model without padding_idx."""
    model = tiny_qwen3(tmp_path)
    gradients = []
    for padding in (None, AutoTokenizer.from_pretrained(model).pad_token_id):
        edited(model / "config.json", pad_token_id=padding)
        embedder = Embedder.from_pretrained(model, dtype=torch.float64)
        embedder.text_tokenizer.pad_id = 5  # another token than the end
        ids = embedder.text_tokenizer(TEXTS, 32)
        for chunk in pack(ids.ids, 10_000, embedder.text_tokenizer.pad_id).chunks:
            embedder(chunk).square().sum().backward()
        table = embedder.backbone.get_input_embeddings()  # type: ignore[operator]
        assert isinstance(table, nn.Embedding)
        gradients.append(table.weight.grad)
    assert gradients[0][embedder.text_tokenizer.end_id].abs().max() > 1e-6
    torch.testing.assert_close(gradients[0], gradients[1])


def test_lower_case_as_sentence_transformers_has_it(tmp_path: Path) -> None:
    model = tiny_qwen3(tmp_path / "cased")
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    reference = SentenceTransformer(str(model), device="cpu")
    embedder = Embedder.from_pretrained(model)
    texts = [*TEXTS, "Ünïcode ΣΑΣ İ", "A <|im_end|> B"]
    assert embedder.text_tokenizer(texts, 64).ids == reference.tokenizer(texts, truncation=True)["input_ids"]
    theirs = torch.tensor(reference.encode(texts, prompt_name="query"))
    torch.testing.assert_close(embedder.encode(texts, kind="query", max_length=64), theirs, atol=1e-5, rtol=0)
    final = tmp_path / "final"
    assert export_embedder(with_noise(embedder), final, query_max_length=64, document_max_length=64).failures == []
    assert json.loads((final / "sentence_bert_config.json").read_text())["do_lower_case"] is True
    exported = AutoTokenizer.from_pretrained(final)
    assert [exported(text)["input_ids"] for text in texts] == embedder.text_tokenizer(texts, 512).ids
    assert Embedder.from_pretrained(final).text_tokenizer(texts, 512).ids == embedder.text_tokenizer(texts, 512).ids


def add_token(model: Path, *, special: bool) -> None:
    """A token of the tokenizer that the model has no row for."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(["<pad>"])
    tokenizer.save(str(model / "tokenizer.json"))
    if special:
        edited(model / "tokenizer_config.json", pad_token="<pad>")


def test_a_special_token_without_a_row_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], llama3: Path
) -> None:
    before = load_tokenizer(llama3)
    add_token(llama3, special=True)
    embedder = Embedder.from_pretrained(llama3)
    assert f"{llama3}: the model has no embedding of <pad>: not used, and read as" in capsys.readouterr().err
    assert embedder.text_tokenizer.pad_id == 0
    text = "a <pad> b"
    assert embedder.text_tokenizer([text], 64).ids == [[*before(text)["input_ids"], before.eos_token_id]]
    assert embedder.encode([text, "a"], kind="document", max_length=64).isfinite().all()
    assert export_embedder(with_noise(embedder), tmp_path / "final", **LENGTHS).failures == []
    assert AutoTokenizer.from_pretrained(tmp_path / "final").pad_token == EOS
    assert Reranker.from_pretrained(llama3).pairs.pad_id == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: edited(model / "config.json", vocab_size=300),
            "and the model has embeddings of ids below 300 on",
        ),
        (lambda model: add_token(model, special=False), "its tokenizer gives '<pad>' the id"),
    ],
)
def test_ids_without_rows_are_refused_before_the_weights(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    model = with_bos(tiny_qwen3(tmp_path, sentence_transformers=False))
    change(model)
    (model / "model.safetensors").write_bytes(b"")
    for load in (Embedder.from_pretrained, Reranker.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(model)


def test_padding_by_the_token_of_unknown_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert(tmp_path / "base")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "model_max_length": 128}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(model).pad_token is None
    export_embedder(with_noise(Embedder.from_pretrained(model)), tmp_path / "final", **LENGTHS)
    assert "the tokenizer has no pad_token; the export pads with its [UNK]" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "final").pad_token == "[UNK]"


def test_vocabularies_without_a_tokenizer_json(bert: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(bert, tmp_path / "slow"))
    (model / "tokenizer.json").unlink()
    embedder = with_noise(Embedder.from_pretrained(model))
    assert (
        embedder.text_tokenizer(TEXTS, 64).ids == TextTokenizer(load_tokenizer(bert), require_end=False)(TEXTS, 64).ids
    )
    assert export_embedder(embedder, tmp_path / "final", **LENGTHS).failures == []
    assert (tmp_path / "final" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, b"", "no tokenizer.json, and no vocabulary that transformers could make one of; fetch the model again"),
        (
            "tokenizer.model",
            b"YQ== 0\nYg== 1\n",
            "makes one of tokenizer.model with tiktoken, which is not installed",
        ),
        (
            "spiece.model",
            b"\n\x0e\n\x05<unk>",
            "makes one of spiece.model with sentencepiece, which is not installed",
        ),
    ],
)
@pytest.mark.parametrize("build", [tiny_bert, tiny_qwen3])
def test_half_a_tokenizer(
    build: Callable[[Path], Path],
    file: str | None,
    content: bytes,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_tokenizer, "find_spec", lambda package: None)
    model = build(tmp_path)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"):
        (model / name).unlink(missing_ok=True)
    if file is not None:
        (model / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(model)


def test_a_tokenizer_that_transformers_cannot_convert(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = type("CanineTokenizer", (), {"is_fast": False})()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *model, **settings: slow)
    with pytest.raises(ValueError, match="its CanineTokenizer is no fast tokenizer, and transformers has no conv"):
        load_tokenizer(bert)


def test_the_longest_text_of_roberta_and_its_kin() -> None:
    """One token more, and positions run out: of each type that transformers has, with the smallest weights."""
    for kind in sorted(POSITIONS_BEHIND_PADDING - {"longformer", "luke", "markuplm", "lilt", "ibert", "xmod"}):
        config = AutoConfig.for_model(
            kind,
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=12,
            pad_token_id=1,
        )
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
        ids = torch.full((1, max_positions(config)), 5)
        assert model(input_ids=ids).last_hidden_state.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, max_positions(config) + 1), 5))
