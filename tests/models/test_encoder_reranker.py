"""Scores and gradients of an encoder reranker are those of sentence-transformers and of transformers' classifier."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from nestling import Reranker
from nestling.batches.packing import prompts_to_chunk
from nestling.models.adapters import attach_lora
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.reranker_settings import SETTINGS, EncoderSettings
from nestling.models.scoring import Group, ScoringStats
from nestling.models.trainable import load_trainable
from tiny import SENTENCES, tiny_cross_encoder, write_json

QUERIES = {
    "find every file": ["files", *SENTENCES[2:5], "files of a user " * 60],
    "人工智慧": [SENTENCES[7]],
    "list all files by size": ["", "ls -S", SENTENCES[1]],
}
PAIRS = [(query, document) for query, documents in QUERIES.items() for document in documents]
# Of each type of model, settings, and whether its pairs can be packed.
KINDS = {
    "bert": ({}, True),
    "roberta": ({"type_vocab_size": 1}, True),
    "xlm-roberta": ({"type_vocab_size": 1}, True),
    "distilbert": ({}, True),
    "electra": ({"embedding_size": 48}, True),
    "modernbert": ({"local_attention": 16, "global_attn_every_n_layers": 2}, True),
    "mpnet": ({}, False),
    "deberta-v2": ({"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, False),
}
MakeModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_cross_encoder(tmp_path_factory.mktemp("cross-encoder") / kind, kind, **KINDS[kind][0])
        return made[kind]

    return make


@pytest.fixture
def cross_encoder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be changed."""
    return Path(shutil.copytree(make_model("bert"), tmp_path / "model"))


def predict(model: Path) -> Tensor:
    return torch.tensor(CrossEncoder(str(model), device="cpu").predict(PAIRS, show_progress_bar=False))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_sentence_transformers(make_model: MakeModel, kind: str) -> None:
    model, packs = make_model(kind), KINDS[kind][1]
    expected = predict(model)
    for attention in ("auto", "eager"):
        reranker = Reranker.from_pretrained(model, attn_implementation=attention)
        assert isinstance(reranker, EncoderReranker)
        assert reranker.padding_free == (packs and attention == "auto")
        torch.testing.assert_close(reranker.score(PAIRS, tokens_per_batch=200), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind][1]])
def test_gradients_are_those_of_single_pairs(make_model: MakeModel, kind: str) -> None:
    model = make_model(kind)
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float64)
    packed, padded = (
        Reranker.from_pretrained(model, dtype=torch.float64, attn_implementation=each) for each in ("auto", "sdpa")
    )
    groups = [
        packed.pairs(query, documents, query_max_length=64, document_max_length=64).ids
        for query, documents in QUERIES.items()
    ]
    weights = torch.randn(len(PAIRS), dtype=torch.float64)
    stride = packed.pairs.type_stride
    for weight, ids in zip(weights, (torch.tensor([pair]) for group in groups for pair in group), strict=True):
        types = {"token_type_ids": ids // stride} if stride else {}
        (plain(input_ids=ids % stride if stride else ids, **types).logits[0, 0] * weight).backward()
    expected = {name: each.grad for name, each in plain.named_parameters()}
    for reranker in (packed, padded):
        chunk = prompts_to_chunk(groups, share_prefix=False, padding_free=reranker.padding_free)
        (reranker(chunk)[:, 0] * weights).sum().backward()
        found = {name.removeprefix("backbone."): each.grad for name, each in reranker.named_parameters()}
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


def test_token_types_change_scores_and_reach_the_model(make_model: MakeModel) -> None:
    reranker = Reranker.from_pretrained(make_model("bert"))
    before = reranker.score(PAIRS)
    with torch.no_grad():
        reranker.classifier.bert.embeddings.token_type_embeddings.weight[1] += torch.linspace(0, 1, 48)
    assert (reranker.score(PAIRS) - before).abs().min() > 1e-5


@pytest.mark.parametrize("form", ["config", "older config", "beside", "settings"])
def test_activation_is_the_one_that_the_files_name(cross_encoder: Path, form: str) -> None:
    config = json.loads((cross_encoder / "config.json").read_text())
    identity = "torch.nn.modules.linear.Identity"
    if form == "config":
        write_json(cross_encoder / "config.json", config | {"sentence_transformers": {"activation_fn": identity}})
    elif form == "older config":
        write_json(cross_encoder / "config.json", config | {"sbert_ce_default_activation_function": identity})
    elif form == "beside":
        files = {"model_type": "CrossEncoder", "activation_fn": identity}
        write_json(cross_encoder / "config_sentence_transformers.json", files)
    else:
        (cross_encoder / SETTINGS).write_text(EncoderSettings(activation="none").to_json())
    reranker = Reranker.from_pretrained(cross_encoder)
    logits = torch.cat(reranker.logits([Group(query, documents) for query, documents in QUERIES.items()]))
    torch.testing.assert_close(reranker.score(PAIRS), logits)
    if form not in ("beside", "settings"):
        torch.testing.assert_close(predict(cross_encoder), logits, atol=1e-5, rtol=0)


def test_settings_are_those_in_its_files(cross_encoder: Path) -> None:
    settings = EncoderSettings("judge", "sigmoid", 5, 7)
    (cross_encoder / SETTINGS).write_text(settings.to_json())
    reranker, stats = Reranker.from_pretrained(cross_encoder), ScoringStats()
    assert reranker.settings == settings
    logits = reranker.logits([Group("find a file", ["a b c d e f g h i j"])], stats=stats)
    assert (stats.tokens, stats.truncated_documents) == (3 + 1 + 3 + 7, 1)
    own = Reranker.from_pretrained(cross_encoder, settings=EncoderSettings())
    torch.testing.assert_close(own.logits([Group("judge find a file", ["a b c d e f g"])]), logits)


def test_refusals(cross_encoder: Path, bert: Path) -> None:
    with pytest.raises(ValueError, match="bert without a head that scores pairs; expected a reranker, which train/rer"):
        Reranker.from_pretrained(bert)
    config = json.loads((cross_encoder / "config.json").read_text())
    write_json(cross_encoder / "config.json", config | {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}})
    with pytest.raises(ValueError, match=r"its scores are torch\.nn\.Tanh of its logits"):
        Reranker.from_pretrained(cross_encoder)
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    write_json(cross_encoder / "config.json", config | labels)
    with pytest.raises(ValueError, match="a classifier of 2 labels, and a reranker has one"):
        Reranker.from_pretrained(cross_encoder)


def test_head_must_be_whole(cross_encoder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder)
    weights = {name: each for name, each in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(cross_encoder, state_dict=weights)
    with pytest.raises(ValueError, match=r"it lacks: bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"):
        Reranker.from_pretrained(cross_encoder)


def test_new_head_is_a_function_of_its_seed(bert: Path) -> None:
    first, again, other = (Reranker.from_pretrained(bert, new_head=seed) for seed in (1, 1, 2))
    state = torch.random.get_rng_state()
    assert torch.equal(first.score(PAIRS), again.score(PAIRS))
    assert not torch.equal(first.score(PAIRS), other.score(PAIRS))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.new_head, first.max_positions) == (True, 128)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "distilbert"])
def test_lora_trains_the_head_in_full(make_model: MakeModel, kind: str) -> None:
    lora = {"r": 2, "alpha": 4, "dropout": 0.0}
    reranker = load_trainable(Reranker, str(make_model(kind)), lora=lora, precision=torch.float32)
    trained = {name for name, each in reranker.named_parameters() if each.requires_grad}
    head = {name for name in trained if "lora_" not in name}
    transformer = f"backbone.base_model.model.{reranker.classifier.base_model_prefix}."
    assert all(not name.startswith(transformer) or "pooler" in name for name in head)
    assert all(name.startswith(transformer) for name in trained - head)
    assert len(head) >= 4
    limits = {"query_max_length": 9, "document_max_length": 9}
    chunk = prompts_to_chunk([reranker.pairs("a", ["b", "c"], **limits).ids], share_prefix=False, padding_free=True)
    reranker(chunk).sum().backward()
    assert all(each.grad is not None for each in reranker.parameters() if each.requires_grad)


def test_output_is_float32_in_bfloat16(make_model: MakeModel) -> None:
    """Else all scores near a number would be equal."""
    reranker = Reranker.from_pretrained(make_model("bert"), precision=torch.bfloat16)
    reranker.backbone = attach_lora(reranker.backbone, r=2, alpha=4, dropout=0.0)
    logits = torch.cat(reranker.logits([Group(query, documents) for query, documents in QUERIES.items()]))
    assert not torch.equal(logits, logits.bfloat16().float())
