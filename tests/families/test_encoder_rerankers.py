"""Rerankers from encoders of many architectures: scores of transformers, training, and an export through its gate."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from architectures import EMBEDDERS, Architecture
from family_models import tiny_config, write_tokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from nestling.batches.packing import prompts_to_chunk
from nestling.export.reranker import export_reranker
from nestling.losses.reranker import pointwise
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.reranker_settings import EncoderSettings
from nestling.models.scoring import Group
from nestling.models.trainable import load_trainable
from tiny import SENTENCES

GROUPS = [
    Group("find every file", ["files", *SENTENCES[2:5], "files of a user"]),
    Group("人工智慧", [SENTENCES[7]]),
    Group("list all files by size", ["", "ls -S", SENTENCES[1]]),
]
SETTINGS = EncoderSettings(query_max_length=48, document_max_length=48)
LIMITS = {"query_max_length": 48, "document_max_length": 48}
# transformers has no classifier of them.
NO_CLASSIFIER = ("splinter", "bert-generation", "embedding_gemma2_text")
# Its classifier needs token ids, and is refused.
BY_IDS = ("longformer",)
ENCODERS = {each.name: each for each in EMBEDDERS if each.kind == "encoder" and each.name != "t5"}
TAKEN = [name for name, each in ENCODERS.items() if not each.refused and name not in NO_CLASSIFIER + BY_IDS]
PACKED = {
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "ernie"),
    *("jina_embeddings_v3", "ultrabert", "xlm-roberta-xl", "data2vec-text", "roberta-prelayernorm"),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def write_cross_encoder(architecture: Architecture, folder: Path) -> Path:
    config = tiny_config(architecture)
    config.num_labels = 1
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    write_tokenizer(architecture, folder)
    return folder


def scores(reranker: EncoderReranker, groups: Sequence[Group], tokens_per_batch: int | None = None) -> Tensor:
    return torch.cat(reranker.logits(groups, tokens_per_batch=tokens_per_batch))


@torch.no_grad()
def plain_scores(folder: Path, reranker: EncoderReranker) -> Tensor:
    """By transformers alone, one pair in each forward."""
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = [ids for each in GROUPS for ids in reranker.pairs(each.query, each.documents, **LIMITS).ids]
    rows = [torch.tensor([ids]) for ids in pairs]
    return torch.cat([plain(input_ids=row, attention_mask=torch.ones_like(row)).logits[:, 0] for row in rows])


@pytest.mark.parametrize("name", TAKEN)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = write_cross_encoder(ENCODERS[name], tmp_path / "model")
    reranker = EncoderReranker.from_pretrained(folder, settings=SETTINGS)
    assert reranker.padding_free == (name in PACKED)
    wanted = plain_scores(folder, reranker)
    for tokens_per_batch in (10_000, 100, 1):
        torch.testing.assert_close(scores(reranker, GROUPS, tokens_per_batch), wanted, rtol=1e-5, atol=1e-5)
    backwards = [Group(each.query, each.documents[::-1]) for each in GROUPS[::-1]]
    torch.testing.assert_close(scores(reranker, backwards).flip(0), wanted, rtol=1e-5, atol=1e-5)


# MPNet takes id 1 for padding whatever its config says, and it is the tiny tokenizer's unknown word.
@pytest.mark.parametrize("name", [name for name in TAKEN if name != "mpnet"])
def test_two_steps_change_a_model_that_passes_its_gate(name: str, tmp_path: Path) -> None:
    folder = write_cross_encoder(ENCODERS[name], tmp_path / "model")
    lora = None if ENCODERS[name].no_lora else {"r": 4, "alpha": 8, "dropout": 0.0}
    reranker = load_trainable(EncoderReranker, str(folder), lora=lora, precision=torch.float32, settings=SETTINGS)
    reranker.train()
    trained = [each for each in reranker.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        groups = [reranker.pairs(each.query, each.documents, **LIMITS).ids for each in GROUPS]
        chunk = prompts_to_chunk(groups, share_prefix=False, padding_free=reranker.padding_free)
        pointwise(reranker(chunk)[:, 0], torch.linspace(0, 1, 9), positive_weight=1.0).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    report = export_reranker(reranker, tmp_path / "final")
    assert not report.failures and report.changes.changed > 0


@pytest.mark.parametrize("name", BY_IDS)
def test_a_head_that_needs_token_ids_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_cross_encoder(ENCODERS[name], tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be run by token embeddings"):
        EncoderReranker.from_pretrained(folder)
