"""Every backend, on real ranks, trains a reranker as one process does on the global batch, and gives its scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from launches import (
    BACKENDS,
    RATE,
    Weights,
    adapt,
    assert_same_update,
    free_port,
    global_batches,
    join,
    launch,
    recipe,
    require_deepspeed,
    train_by_hand,
    usable,
)
from ranks import run_ranks
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from nestling.backends import Backend
from nestling.batches.packing import pad
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator, sampled_record
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.config import RerankLossConfig
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import AnySettings, EncoderSettings, RerankerSettings
from nestling.records import Record, RecordTable, RetrievalSet, load_records
from nestling.records.summary import LoadSummary
from nestling.retrieval import Candidates, rerank
from nestling.training.accumulated import accumulated_backward
from tiny import tiny_cross_encoder, tiny_qwen3

RECIPE = recipe("rerank")
DRAW = RowSampler(positives=2, negatives=3, seed=0)
LENGTH = 32
CHUNK, WHOLE_CHUNK = 50, 100  # positions: queries fill several chunks, or two one; the ranks have unequal numbers
# Likewise of pairs without a prompt; those of whole queries are packed, or padded by ZeRO-3.
ENCODER_CHUNK, WHOLE_PACKED, WHOLE_PADDED = 16, 75, 90
TEMPERATURES = {"temperature": 0.7, "teacher_temperature": 0.4}

ROWS = [
    {
        "query": "one",
        "positives": ["list the files", "ls"],
        "negatives": ["remove"],
        "positive_scores": [0.9, 0.6],
        "negative_scores": [0.25],
    },
    {
        "query": "two",
        "positives": ["count the lines of every file " * 3],
        "negatives": ["sort", "print a line", "wc -c", "find . -name a"],
        "positive_scores": [0.8],
        "negative_scores": [0.0, 0.5, 0.1, 0.3],
    },
    {
        "query": "three",
        "positives": [],
        "negatives": ["who", "jobs", "df"],
        "positive_scores": [],
        "negative_scores": [0.1, 0.4, 0.0],
    },
    {
        "query": "four",
        "positives": ["d"],
        "negatives": [],
        "positive_scores": [0.7],
        "negative_scores": [],
    },
]


@dataclass(frozen=True)
class Case:
    """A case of training that is tested.

    Args:
        backend: As in `launches.Launch`, as are `clip` and `full_gradients`.
        kind: The objective: answers, vocabulary, soft, listwise or distillation.
        tuning: full or lora.
        encoder: Whether the model is an encoder.
    """

    backend: str
    kind: str
    tuning: str = "full"
    clip: float = 0.0
    full_gradients: bool = True
    encoder: bool = False

    def __str__(self) -> str:
        encoder = "-encoder" if self.encoder else ""
        clip, reduction = "-clip" if self.clip else "", "" if self.full_gradients else "-parts"
        return f"{self.backend}-{self.kind}-{self.tuning}{clip}{reduction}{encoder}"

    @property
    def loss(self) -> RerankLossConfig:
        if self.kind == "listwise":
            return RerankLossConfig(objective=self.kind, temperature=TEMPERATURES["temperature"])
        if self.kind == "distillation":
            return RerankLossConfig(objective=self.kind, **TEMPERATURES)
        return RerankLossConfig(
            objective="pointwise_vocabulary" if self.kind == "vocabulary" else "pointwise",
            labels="teacher" if self.kind == "soft" else "hard",
            positive_weight=1.5,
        )


# Every value of each setting with every backend, and most pairs of values; the full product is marked slow. Gradients
# of all weights have norms of 11 to 17: clipped to far less, updates would be lost in the rounding of the weights.
PAIRWISE = [
    Case("ddp", "answers", "full", 4.0),
    Case("ddp", "vocabulary", "full"),
    Case("ddp", "listwise", "lora", 0.5),
    Case("ddp", "distillation", "full"),
    Case("zero1", "answers", "lora"),
    Case("zero1", "listwise", "full", 4.0),
    Case("zero1", "vocabulary", "full", full_gradients=False),
    Case("zero2", "vocabulary", "full", 4.0),
    Case("zero2", "distillation", "lora"),
    Case("zero2", "soft", "full", full_gradients=False),
    Case("zero3", "answers", "full"),
    Case("zero3", "vocabulary", "lora", 0.5),
    Case("zero3", "listwise", "full", full_gradients=False),
    Case("fsdp", "answers", "full", 4.0),
    Case("fsdp", "vocabulary", "full", full_gradients=False),
    Case("fsdp", "soft", "lora"),
    Case("fsdp", "distillation", "full"),
    Case("ddp", "answers", "lora", 0.5, encoder=True),
    Case("zero1", "listwise", "full", encoder=True),
    Case("zero3", "distillation", "lora", encoder=True),
    Case("fsdp", "answers", "full", encoder=True),
]
PRODUCT = [
    Case(backend, kind, tuning, clip, full_gradients)
    for backend, kind, (tuning, norm), full_gradients in product(
        BACKENDS,
        ("answers", "vocabulary", "soft", "listwise", "distillation"),
        (("full", 4.0), ("lora", 0.5)),
        (True, False),
    )
    for clip in (0.0, norm)
    if full_gradients or backend != "ddp"
]


def load(folder: Path, case: Case) -> Reranker:
    settings: AnySettings = RerankerSettings(prefix="", suffix="\nanswer:", instruction="judge")
    if case.encoder:
        settings = EncoderSettings(instruction="judge")
    reranker = Reranker.from_pretrained(folder / ("encoder" if case.encoder else "model"), settings=settings)
    reranker.full_vocabulary = case.kind == "vocabulary"
    if case.tuning == "lora":
        adapt(reranker)
    return reranker.train()


def table(folder: Path) -> RecordTable:
    return load_records(folder / "rows.jsonl", progress=False, allow_no_positives=True)


def collate(folder: Path, case: Case, reranker: Reranker, rank: int, world: int) -> RerankCollator:
    whole = case.loss.objective != "pointwise"
    chunk, whole_chunk = CHUNK, WHOLE_CHUNK
    if case.encoder:
        chunk, whole_chunk = ENCODER_CHUNK, WHOLE_PACKED if reranker.padding_free else WHOLE_PADDED
    return RerankCollator(
        [Source(table(folder))],
        DRAW,
        reranker.pairs,
        query_max_length=LENGTH,
        document_max_length=LENGTH,
        chunk_tokens=whole_chunk if whole else chunk,
        share_prefix=reranker.share_prefix,
        padding_free=reranker.padding_free,
        whole_groups=whole,
        teacher_targets=case.kind == "soft",
        rank=rank,
        world_size=world,
    )


def take_step(backend: Backend, case: Case, batch: RerankBatch) -> float:
    """This rank's part of the loss."""

    def share_of(chunk: int, logits: Tensor) -> Tensor:
        labels: ChunkLabels = batch.labels[chunk]
        share: Tensor = RECIPE.chunk_loss(logits, labels, batch, case.loss)
        return share

    part = accumulated_backward(backend, batch.chunks, share_of)
    backend.update(RATE, case.clip, lambda norm: norm < float("inf"))
    return float(part)


def small_set() -> RetrievalSet:
    documents = ["list the files", "remove a folder", "count " * 20, "d", "print"]
    return RetrievalSet(
        name="small",
        split="test",
        document_ids=[f"d{i}" for i in range(5)],
        documents=documents,
        query_ids=["q0", "q1", "q2"],
        queries=["one", "two", "three"],
        relevant=[np.array([1])] * 3,
        gains=[np.array([1.0])] * 3,
        own_documents=np.array([-1] * 3),
        summary=LoadSummary("small", "BEIR", 3, 3),
    )


def scores(reranker: Reranker, *, equal_forwards: bool) -> Tensor:
    """Logits of lists of unequal lengths: one is empty, and the last one has several chunks."""
    rows = [np.array([4, 1]), np.array([], dtype=np.int64), np.array([0, 3, 2, 1, 4])]
    found = rerank(reranker, small_set(), Candidates(rows), tokens_per_batch=CHUNK, equal_forwards=equal_forwards)
    assert [len(each) for each in found] == [2, 0, 5]
    return torch.from_numpy(np.concatenate(found))


def on_a_rank(cases: Sequence[Case], port: int, rank: int, folder: Path) -> None:
    join(rank, 2, port)
    for case in cases:
        backend = launch(case, 2, partial(load, folder, case))
        reranker = backend.model
        assert isinstance(reranker, Reranker)
        collator = collate(folder, case, reranker, rank, 2)
        batches = [collator[indices] for indices in global_batches()]
        losses = [take_step(backend, case, batch) for batch in batches]
        weights = {name: each.detach().clone() for name, each in backend.tensors().items()}
        logits = scores(reranker, equal_forwards=backend.sharded)
        torch.save((weights, logits, losses, [len(each.chunks) for each in batches]), folder / f"{rank}-{case}.pt")


def prepare_folder(folder: Path) -> Path:
    tiny_qwen3(folder / "model", sentence_transformers=False)
    tiny_cross_encoder(folder / "encoder")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare_folder(tmp_path_factory.mktemp("two"))
    run_ranks(2, partial(on_a_rank, usable(PAIRWISE), free_port()), folder)
    return folder


@pytest.fixture(scope="module")
def full_product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare_folder(tmp_path_factory.mktemp("product"))
    run_ranks(2, partial(on_a_rank, usable(PRODUCT), free_port()), folder)
    return folder


def plain_loss(reranker: Reranker, records: Sequence[Record], case: Case) -> Tensor:
    """The mean loss of a global batch over its pairs or queries, with one prompt in a row, as in the formulas."""
    losses: list[Tensor] = []
    for record in records:
        documents = [*record.positives, *record.negatives]
        limits = {"query_max_length": LENGTH, "document_max_length": LENGTH}
        logits = reranker(pad(reranker.pairs(record.query, documents, **limits).ids, 0))
        positives = len(record.positives)
        assert record.positive_scores is not None and record.negative_scores is not None
        teacher = torch.tensor([*record.positive_scores, *record.negative_scores])
        if case.loss.pointwise:
            hard = torch.tensor([1.0] * positives + [0.0] * len(record.negatives))
            t = teacher if case.kind == "soft" else hard
            z = logits[:, 0]
            no, yes = logits.T if case.kind == "vocabulary" else ((1 - z.sigmoid()).log(), z.sigmoid().log())
            losses += list(-(1.5 * t * yes + (1 - t) * no))
            continue
        z = logits[:, 0] / TEMPERATURES["temperature"]
        if case.loss.objective == "distillation":
            wanted = (teacher / TEMPERATURES["teacher_temperature"]).softmax(0)
            losses.append(kl_div(log_softmax(z, 0), wanted, reduction="sum"))
        elif positives and len(documents) > positives:
            lists = [torch.cat([z[i : i + 1], z[positives:]]) for i in range(positives)]
            losses.append(torch.stack([-log_softmax(each, 0)[0] for each in lists]).mean())
        else:
            losses.append(torch.zeros(()))
    return torch.stack(losses).mean()


def assert_trained_as_one(folder: Path, case: Case) -> None:
    reranker, rows, expected_losses = load(folder, case), table(folder), []

    def loss_of(indices: BatchIndices) -> Tensor:
        visits = zip(indices.rows, indices.row_epochs, strict=True)
        loss = plain_loss(reranker, [sampled_record(rows, DRAW, *visit) for visit in visits], case)
        expected_losses.append(loss.item())
        return loss

    before, expected = train_by_hand(reranker, loss_of, global_batches(), case.clip)
    found = [torch.load(folder / f"{rank}-{case}.pt") for rank in range(2)]
    weights: Weights = found[0][0]
    assert_same_update(before, expected, weights)
    shares = [sum(parts) for parts in zip(*(losses for _, _, losses, _ in found), strict=True)]
    assert shares == pytest.approx(expected_losses, rel=1e-5)
    for _, logits, _, _ in found:
        torch.testing.assert_close(logits, scores(reranker, equal_forwards=False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_two_ranks_take_the_steps_of_one(case: Case, two_ranks: Path) -> None:
    require_deepspeed(case)
    assert_trained_as_one(two_ranks, case)


def test_ranks_have_unequal_numbers_of_chunks(two_ranks: Path) -> None:
    """Otherwise the tests above would not test that ranks of sharded models agree on them."""
    for case in usable(PAIRWISE):
        first, second = (torch.load(two_ranks / f"{rank}-{case}.pt")[3] for rank in range(2))
        assert all(one != other for one, other in zip(first, second, strict=True)), case


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("case", PRODUCT, ids=str)
def test_every_combination_takes_the_steps_of_one(case: Case, full_product: Path) -> None:
    require_deepspeed(case)
    assert_trained_as_one(full_product, case)
