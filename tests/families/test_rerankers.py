"""Rerankers of many architectures: scores of transformers, training, and an export through its gate."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from families.causal_models import CAUSAL_MODELS, tiny_causal
from nestling.batches.packing import prompts_to_chunk
from nestling.export.reranker import export_reranker
from nestling.losses.reranker import pointwise
from nestling.models.adapters import attach_lora
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.scoring import Group
from tiny import SENTENCES

GROUPS = [
    Group("find every file", ["files", *SENTENCES[2:5], "files of a user"]),
    Group("人工智慧", [SENTENCES[7]]),
    Group("list all files by size", ["", "ls -S", SENTENCES[1]]),
]
SETTINGS = RerankerSettings(query_max_length=48, document_max_length=48)
QUICK = ("bloom", "gemma2", "gpt2", "granitemoe", "lfm2", "qwen3_moe")
TAKEN = [name for name, row in CAUSAL_MODELS.items() if not row.refused]
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TAKEN]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("causal")


def model_of(name: str, folders: Path, tokenizer: Path) -> Path:
    folder = folders / name
    return folder if folder.exists() else tiny_causal(name, folder, tokenizer)


def load(folder: Path) -> Reranker:
    return Reranker.from_pretrained(folder, settings=SETTINGS)


def scores(reranker: Reranker, groups: Sequence[Group], tokens_per_batch: int | None = None) -> Tensor:
    return torch.cat(reranker.logits(groups, tokens_per_batch=tokens_per_batch))


@torch.no_grad()
def plain_scores(folder: Path, reranker: Reranker) -> Tensor:
    """By transformers alone, one prompt in each forward."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    limits = {"query_max_length": SETTINGS.query_max_length, "document_max_length": SETTINGS.document_max_length}
    prompts = [ids for each in GROUPS for ids in reranker.pairs(each.query, each.documents, **limits).ids]
    logits = torch.stack([plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in prompts])
    return logits[:, reranker.pairs.yes_id] - logits[:, reranker.pairs.no_id]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers(name: str, folders: Path, qwen3_base: Path) -> None:
    folder = model_of(name, folders, qwen3_base)
    reranker = load(folder)
    assert (reranker.padding_free, reranker.share_prefix) == (CAUSAL_MODELS[name].packed,) * 2
    wanted = plain_scores(folder, reranker)
    assert wanted.std() > 1e-3
    exact = {"rtol": 1e-5, "atol": 1e-5}
    for tokens_per_batch in (10_000, 300, 1):
        torch.testing.assert_close(scores(reranker, GROUPS, tokens_per_batch), wanted, **exact)
    backwards = [Group(each.query, each.documents[::-1]) for each in GROUPS[::-1]]
    torch.testing.assert_close(scores(reranker, backwards).flip(0), wanted, **exact)
    reranker.full_vocabulary = True
    torch.testing.assert_close(scores(reranker, GROUPS), wanted, **exact)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_change_a_model_that_passes_its_gate(
    name: str, tuning: str, folders: Path, qwen3_base: Path, tmp_path: Path
) -> None:
    reranker = load(model_of(name, folders, qwen3_base))
    if tuning == "lora":
        reranker.backbone = attach_lora(reranker.backbone, r=4, alpha=8, dropout=0.0)
    two_steps(reranker)
    dtype = torch.bfloat16 if tuning == "lora" else None  # the gate computes in float32 with weights of either type
    report = export_reranker(reranker, tmp_path / "final", dtype=dtype)
    assert not report.failures
    assert report.changes.changed > 0
    assert (report.sentence_transformers is not None) == CAUSAL_MODELS[name].left_padded


def two_steps(reranker: Reranker) -> None:
    """Of AdamW, after which every trained parameter that can have a gradient has had one."""
    trained = {name: each for name, each in reranker.named_parameters() if each.requires_grad}
    before = {name: each.detach().clone() for name, each in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    prompts = reranker.pairs("find every file", GROUPS[0].documents, query_max_length=48, document_max_length=48).ids
    chunk = prompts_to_chunk([prompts], share_prefix=reranker.share_prefix, padding_free=reranker.padding_free)
    for in_place in (False, True):
        optimizer.zero_grad()
        logits = reranker.train()(chunk, in_place=in_place)[:, 0]
        pointwise(logits, torch.tensor([1.0, 0, 0, 1, 0]), positive_weight=1.0).mean().backward()
        optimizer.step()
    changed = [name for name, each in trained.items() if not torch.equal(each, before[name])]
    assert len(changed) > 0.8 * len(trained)
    assert all(bool(each.isfinite().all()) for each in trained.values())


@pytest.mark.parametrize("name", [name for name, row in CAUSAL_MODELS.items() if row.refused])
def test_models_that_cannot_be_right_are_refused(name: str, folders: Path, qwen3_base: Path) -> None:
    with pytest.raises(ValueError, match=CAUSAL_MODELS[name].refused) as refused:
        load(model_of(name, folders, qwen3_base))
    assert "\n" not in str(refused.value)
