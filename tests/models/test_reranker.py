"""Scores and gradients of the reranker are those of a plain causal language model, one prompt at a time."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from nestling.batches.packing import AnyChunk, concatenate, pad, prompts_to_chunk
from nestling.batches.pair_prompts import RerankPrompt
from nestling.batches.prefix_sharing import SharedPrefixChunk, pack_groups
from nestling.losses.reranker import pointwise, pointwise_vocabulary
from nestling.models.adapters import attach_lora
from nestling.models.reranker import RankedDocument, Reranker
from nestling.models.reranker_settings import SETTINGS, RerankerSettings
from tiny import SENTENCES, tiny_qwen3

Gradients = dict[str, Tensor]

QUERIES = {
    "find every file": ["files", *SENTENCES[2:5], "files of a user"],
    "人工智慧": [SENTENCES[7]],
    "list all files by size": ["", "ls -S", SENTENCES[1]],
}
TARGETS = torch.tensor([1.0, 0.0, 0.25, 0.0, 1.0, 1.0, 0.0, 0.75, 0.0], dtype=torch.float64)
WEIGHT = 1.7  # of positives

FORMS = {"shared": ("auto", True), "packed": ("auto", False), "padded": ("sdpa", False)}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 base model, whose output layer is its token embeddings."""
    return tiny_qwen3(tmp_path_factory.mktemp("tied"), sentence_transformers=False)


@pytest.fixture(scope="module")
def untied(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an output layer of its own."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    shutil.copytree(tied, folder)
    model = AutoModelForCausalLM.from_pretrained(tied)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) / 8)
    model.save_pretrained(folder)
    return folder


def load(model: Path, form: str, dtype: torch.dtype = torch.float64, *, lora: bool = False) -> Reranker:
    attention, share_prefix = FORMS[form]
    reranker = Reranker.from_pretrained(model, dtype=dtype, attn_implementation=attention, share_prefix=share_prefix)
    assert reranker.share_prefix == share_prefix
    if lora:
        reranker.backbone = attach_lora(reranker.backbone, r=4, alpha=8, dropout=0.0)
        torch.manual_seed(1)
        for name, parameter in reranker.named_parameters():
            if "lora_B" in name:  # zeros at the start, under which A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1)
        reranker.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(reranker)
    return reranker.train()


def compute_norms_in_float64(model: torch.nn.Module) -> None:
    """transformers' RMS norms go through float32, whose rounding would hide errors below 1e-7."""
    for each in model.modules():
        if isinstance(each, Qwen3RMSNorm):
            shape = each.weight.shape
            each.forward = partial(rms_norm, normalized_shape=shape, weight=each.weight, eps=each.variance_epsilon)


def prompts(reranker: Reranker) -> list[list[list[int]]]:
    limits = {"query_max_length": 64, "document_max_length": 64}
    return [reranker.pairs(query, documents, **limits).ids for query, documents in QUERIES.items()]


def plain_model(model: Path, reranker: Reranker) -> PreTrainedModel:
    """transformers' own class with the same weights, adapters included."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=next(reranker.parameters()).dtype).train()
    own = {name.removeprefix("backbone."): each for name, each in reranker.named_parameters()}
    if any("lora_" in name for name in own):
        plain = attach_lora(plain, r=4, alpha=8, dropout=0.0).to(plain.dtype)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name])
    if plain.dtype == torch.float64:
        compute_norms_in_float64(plain)
    return plain


def plain_logits(plain: PreTrainedModel, groups: Sequence[Sequence[list[int]]]) -> Tensor:
    """[n, V], a forward for each prompt."""
    rows = [torch.tensor([prompt]) for group in groups for prompt in group]
    return torch.stack([plain(input_ids=row, use_cache=False).logits[0, -1] for row in rows])


def plain_loss(plain: PreTrainedModel, reranker: Reranker) -> Tensor:
    """Eq. 2 written out: the mean of -log p(label)."""
    answers = [reranker.pairs.no_id, reranker.pairs.yes_id]
    logits = plain_logits(plain, prompts(reranker))
    no, yes = (
        logits.log_softmax(1)[:, answers] if reranker.full_vocabulary else logits[:, answers].log_softmax(1)
    ).unbind(1)
    targets = TARGETS.to(logits.dtype)
    return -(WEIGHT * targets * yes + (1 - targets) * no).mean()


def own_loss(reranker: Reranker, chunks: Sequence[AnyChunk], *, in_place: bool = False) -> Tensor:
    logits = torch.cat([reranker(chunk, in_place=in_place) for chunk in chunks])
    if reranker.full_vocabulary:
        return pointwise_vocabulary(logits, TARGETS, positive_weight=WEIGHT).mean()
    return pointwise(logits[:, 0], TARGETS, positive_weight=WEIGHT).mean()


def chunks_of(reranker: Reranker) -> list[AnyChunk]:
    """Two chunks, of two queries and of one."""
    groups = prompts(reranker)
    share_prefix, padding_free = reranker.share_prefix, reranker.padding_free
    return [
        prompts_to_chunk(part, share_prefix=share_prefix, padding_free=padding_free)
        for part in (groups[:2], groups[2:])
    ]


def gradients(model: torch.nn.Module, loss: Tensor) -> Gradients:
    loss.backward()
    found = {
        name.removeprefix("backbone."): each.grad for name, each in model.named_parameters() if each.grad is not None
    }
    model.zero_grad()
    return found


def assert_same(found: Gradients, expected: Gradients, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert ((found[name] - gradient).norm() / gradient.norm()).item() < tolerance, name


@pytest.mark.parametrize("space", ["answers", "vocabulary"])
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize(
    ("kind", "lora", "dtype", "tolerance"),
    [
        ("tied", False, torch.float64, 1e-10),
        ("untied", False, torch.float64, 1e-10),
        ("tied", True, torch.float64, 1e-10),
        ("untied", False, torch.float32, 1e-5),
    ],
    ids=["tied", "untied", "lora", "float32"],
)
def test_loss_and_gradients_are_those_of_the_plain_model(
    kind: str,
    lora: bool,
    dtype: torch.dtype,
    tolerance: float,
    form: str,
    space: str,
    request: pytest.FixtureRequest,
) -> None:
    folder = request.getfixturevalue(kind)
    reranker = load(folder, form, dtype, lora=lora)
    reranker.full_vocabulary = space == "vocabulary"
    plain = plain_model(folder, reranker)
    wanted = plain_loss(plain, reranker)
    expected = gradients(plain, wanted)
    assert (len(expected) == 28) == lora  # 7 linear layers twice, two matrices each
    for in_place in (False, True):
        loss = own_loss(reranker, chunks_of(reranker), in_place=in_place)
        torch.testing.assert_close(loss, wanted, rtol=tolerance, atol=0)
        assert_same(gradients(reranker, loss), expected, tolerance)


def test_positions_of_each_form(tied: Path) -> None:
    reranker = load(tied, "shared")
    shared, padding_free, padded = (
        prompts_to_chunk(prompts(reranker), share_prefix=share_prefix, padding_free=free)
        for share_prefix, free in ((True, True), (False, True), (False, False))
    )
    assert isinstance(shared, SharedPrefixChunk) and isinstance(padding_free, SharedPrefixChunk)
    tokens = sum(len(prompt) for group in prompts(reranker) for prompt in group)
    assert shared.positions < tokens / 2
    assert padding_free.positions == tokens < padded.positions
    assert shared.lengths.tolist() == padding_free.lengths.tolist() == padded.lengths.tolist()


def test_every_form_of_chunk_gives_the_same_scores(tied: Path) -> None:
    reranker = load(tied, "shared").eval()
    everything = [prompt for group in prompts(reranker) for prompt in group]
    with torch.no_grad():
        expected = plain_logits(plain_model(tied, reranker), prompts(reranker))
        z = expected[:, reranker.pairs.yes_id] - expected[:, reranker.pairs.no_id]
        for chunk in (pack_groups(prompts(reranker), share_prefix=True), concatenate(everything), pad(everything, 0)):
            torch.testing.assert_close(reranker(chunk)[:, 0], z, rtol=1e-10, atol=1e-10)


def test_recomputed_activations_change_no_gradient(tied: Path) -> None:
    reranker = load(tied, "shared")
    expected = gradients(reranker, own_loss(reranker, chunks_of(reranker)))
    reranker.checkpoint_activations_above(0)
    found = gradients(reranker, own_loss(reranker, chunks_of(reranker)))
    assert_same(found, expected, 1e-12)


def test_bfloat16_is_close(tied: Path) -> None:
    reranker = load(tied, "shared", torch.float32)
    expected = own_loss(reranker, chunks_of(reranker))
    wanted = gradients(reranker, expected)
    reranker.precision = torch.bfloat16
    found = own_loss(reranker, chunks_of(reranker))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert_same(gradients(reranker, found), wanted, 0.1)


class Shapes(TorchDispatchMode):
    """Records the sizes of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.seen |= set(each.shape)
        return made


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("form", list(FORMS))
def test_no_tensor_has_the_size_of_the_vocabulary(kind: str, form: str, request: pytest.FixtureRequest) -> None:
    reranker = load(request.getfixturevalue(kind), form)
    words = reranker.head.weight.shape[0]
    with Shapes() as shapes:
        reranker(chunks_of(reranker)[0])
    assert words not in shapes.seen
    reranker.full_vocabulary = True
    with Shapes() as shapes:
        reranker(chunks_of(reranker)[0])
    assert words in shapes.seen


def public_scores(folder: Path, queries: Sequence[str], documents: Sequence[str]) -> list[float]:
    """Scores computed by the example code of Qwen3-Reranker's model card."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    no, yes = (tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes"))
    settings = RerankPrompt()
    prefix, suffix = (tokenizer.encode(text, add_special_tokens=False) for text in (settings.prefix, settings.suffix))
    bodies = [
        f"<Instruct>: {settings.instruction}\n<Query>: {query}\n<Document>: {document}"
        for query, document in zip(queries, documents, strict=True)
    ]
    inputs = tokenizer(bodies, add_special_tokens=False)["input_ids"]
    padded = tokenizer.pad({"input_ids": [prefix + each + suffix for each in inputs]}, return_tensors="pt")
    with torch.no_grad():
        scores = model(**padded).logits[:, -1, :]
    both = torch.stack([scores[:, no], scores[:, yes]], dim=1)
    found: list[float] = torch.nn.functional.log_softmax(both, dim=1)[:, 1].exp().tolist()
    return found


@pytest.mark.filterwarnings("ignore:.*using the `__call__` method is faster")
@pytest.mark.parametrize("form", list(FORMS))
def test_scores_are_those_of_the_published_code(form: str, tied: Path) -> None:
    reranker = load(tied, form, torch.float32)
    pairs = [(query, document) for query, documents in QUERIES.items() for document in documents]
    scattered = pairs[::2] + pairs[1::2]  # so that pairs of one query are not adjacent
    found = reranker.score(scattered, tokens_per_batch=300)
    assert (found.dtype, found.shape) == (torch.float32, (len(pairs),))
    torch.testing.assert_close(found, torch.tensor(public_scores(tied, *zip(*scattered, strict=True))))
    assert found.std() > 0.01
    assert reranker.training


def test_documents_are_ranked_by_their_scores(tied: Path) -> None:
    reranker = load(tied, "shared", torch.float32)
    documents = ["files", SENTENCES[3], "ls", "files", SENTENCES[5], "files"]
    scores = reranker.score([("list files", document) for document in documents]).tolist()
    ranked = reranker.rank("list files", documents)
    assert [each.index for each in ranked] == sorted(range(6), key=lambda i: -scores[i])
    assert [each.index for each in ranked if each.index in (0, 3, 5)] == [0, 3, 5]
    assert ranked == [RankedDocument(each.index, scores[each.index]) for each in ranked]
    assert reranker.rank("list files", documents, top_k=2) == ranked[:2]
    assert reranker.rank("list files", documents, top_k=9) == ranked
    assert reranker.rank("list files", []) == []
    assert reranker.score([]).shape == (0,)


def test_an_instruction_replaces_the_default(tied: Path) -> None:
    reranker = load(tied, "shared", torch.float32)
    (first,) = reranker.score([("a", "b")]).tolist()
    (second,) = reranker.score([("a", "b")], instruction="Judge the command").tolist()
    reranker.pairs.prompt = RerankPrompt(instruction="Judge the command")
    (third,) = reranker.score([("a", "b")]).tolist()
    assert second == third != first


def test_settings_come_from_the_directory(tied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tied, folder)
    settings = RerankerSettings(prefix="", suffix="\nanswer:", yes="a", no="b", document_max_length=3)
    (folder / SETTINGS).write_text(settings.to_json())
    assert json.loads(settings.to_json())["document_max_length"] == 3
    reranker = Reranker.from_pretrained(folder)
    assert reranker.settings == settings
    assert reranker.head.answers.tolist() == [reranker.pairs.no_id, reranker.pairs.yes_id]
    assert reranker.tokenizer.convert_ids_to_tokens(reranker.head.answers.tolist()) == ["b", "a"]
    cut, whole = reranker.score([("files", SENTENCES[2]), ("files", SENTENCES[2] + " more")]).tolist()
    assert cut == pytest.approx(whole, abs=1e-6)
    assert Reranker.from_pretrained(tied).settings == RerankerSettings()
    (folder / SETTINGS).write_text('{"prompt": "x"}')
    with pytest.raises(ValueError, match=r"reranker.json: unknown settings prompt"):
        Reranker.from_pretrained(folder)


def scaled(folder: Path, tokenizer: Path, kind: str) -> Path:
    """A model whose logits are not its hidden states times its output layer."""
    shutil.copytree(tokenizer, folder)
    words = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    size: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if kind == "granite":
        GraniteForCausalLM(GraniteConfig(**size, logits_scaling=4.0)).save_pretrained(folder)
    else:
        size |= {"attn_logit_softcapping": None, "final_logit_softcapping": 30.0}
        Gemma2ForCausalLM(Gemma2Config(**size)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("space", ["answers", "vocabulary"])
@pytest.mark.parametrize("kind", ["granite", "gemma2"])
def test_scaled_and_capped_logits_have_the_loss_and_gradients_of_the_plain_model(
    kind: str, space: str, tied: Path, tmp_path: Path
) -> None:
    folder = scaled(tmp_path / "model", tied, kind)
    reranker = Reranker.from_pretrained(folder).train()
    reranker.full_vocabulary = space == "vocabulary"
    plain = plain_model(folder, reranker)
    wanted = plain_loss(plain, reranker)
    expected = gradients(plain, wanted)
    for in_place in (False, True):
        loss = own_loss(reranker, chunks_of(reranker), in_place=in_place)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        assert_same(gradients(reranker, loss), expected, 1e-4)


def test_embedders_are_refused(qwen3: Path) -> None:
    with pytest.raises(ValueError, match="is an embedder"):
        Reranker.from_pretrained(qwen3)


@pytest.mark.parametrize("answers", [{"yes": "relevant document"}, {"no": "not at all"}])
def test_answers_of_several_tokens_are_refused(answers: dict[str, str], tied: Path) -> None:
    with pytest.raises(ValueError, match=r"splits the answer '.*' into .*; expected one token, choose another word"):
        Reranker.from_pretrained(tied, settings=RerankerSettings(**answers))
