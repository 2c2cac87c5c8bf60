"""Three SGD steps of one training task: on the ranks of a backend, and by a plain reference in one process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from launches import Weights, adapt, global_batches, launch, recipe, train_by_hand
from torch import Tensor

from nestling.backends import Backend
from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.checkpoint import Checkpoints, TrainingState, write_training
from nestling.config import LossConfig
from nestling.config.training import OptimName
from nestling.distributed.gathering import gather_batch
from nestling.losses.distillation import distillation
from nestling.losses.graded import cosent
from nestling.losses.reference import info_nce
from nestling.models.embedder import Embedder
from nestling.records import load_records
from nestling.training.cached import ActivationBudget, cached_backward

DIMS = {64: 1.0, 16: 0.5}
RATE = 0.5  # clipped updates must stand well above the rounding of float32 weights
BUDGETS = {
    "none": ActivationBudget(0.0, 1.0),
    "some": ActivationBudget(45.0, 1.0),
    "all": ActivationBudget(float("inf"), 1.0),
}


RANKED = [
    {"query": "one", "positives": ["a", "b"], "negatives": ["x"], "positive_scores": [3, 2], "negative_scores": [1]},
    {"query": "two", "positives": ["b"], "negatives": ["y", "z"], "positive_scores": [5], "negative_scores": [0, 1]},
    {"query": "three", "positives": ["c"], "negatives": [], "positive_scores": [4], "negative_scores": []},
    {"query": "four", "positives": ["d"], "negatives": ["x"], "positive_scores": [1], "negative_scores": [0]},
]
GRADED = [{"sentence1": f"left {i}", "sentence2": f"right {i % 3}", "score": (i * 7 % 4) / 4} for i in range(4)]


@dataclass(frozen=True)
class Case:
    """A case of training that is tested.

    Args:
        backend: ddp, zero1, zero2, zero3 or fsdp.
        kept: Which chunks keep their activations until the backward pass: none, some or all.
        tuning: full or lora.
        kind: contrastive, distilled or graded.
        clip: What gradients are clipped to; 0 does not clip.
        full_gradients: Whether full gradients are kept until they are reduced once per step.
        head: Whether the model has a Dense module behind its pooling.
    """

    backend: str
    kept: str = "none"
    tuning: str = "full"
    kind: str = "contrastive"
    clip: float = 0.0
    full_gradients: bool = True
    head: bool = False

    def __str__(self) -> str:
        clip, reduction = "-clip" if self.clip else "", "" if self.full_gradients else "-parts"
        head = "-head" if self.head else ""
        return f"{self.backend}-{self.kept}-{self.tuning}-{self.kind}{clip}{reduction}{head}"


def write_data(folder: Path) -> None:
    for name, rows in (("ranked", RANKED), ("graded", GRADED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, case: Case, dtype: torch.dtype = torch.float32) -> Embedder:
    embedder = Embedder.from_pretrained(folder / ("headed" if case.head else "model"), dtype=dtype, precision=dtype)
    if case.tuning == "lora":
        adapt(embedder)
    return embedder.train()


def collate(folder: Path, case: Case, embedder: Embedder, rank: int, world: int) -> EmbedCollator:
    file = folder / f"{'graded' if case.kind == 'graded' else 'ranked'}.jsonl"
    return EmbedCollator(
        # With one prompt on both sides the graded texts are nearly equal here, and three steps at this rate turn
        # the rounding of their cosines into differences above the limit.
        [Source(load_records(file, progress=False), symmetric=False)],
        RowSampler(positives=2, negatives=2, seed=0),
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=32,
        document_max_length=32,
        chunk_tokens=40,
        teacher=case.kind == "distilled",
        rank=rank,
        world_size=world,
    )


def loss_config(case: Case) -> LossConfig:
    weight = 0.7 if case.kind == "distilled" else 0.0
    return LossConfig(temperature=0.2, score_margin=0.1, distillation_weight=weight)


def prepared(folder: Path, case: Case, world: int, *, optim: OptimName | None = None) -> Backend:
    """The model in the backend of the case; in bfloat16 for torchao's optimizer, as in the recipes."""
    dtype = torch.bfloat16 if optim == "adamw_torch_8bit" else torch.float32
    return launch(case, world, lambda: load(folder, case, dtype), optim=optim)


def take_step(backend: Backend, case: Case, collator: EmbedCollator, indices: BatchIndices) -> tuple[float, float]:
    """This rank's part of the loss, and the norm of the gradient."""
    batch, loss = collator[indices], loss_config(case)
    part = cached_backward(backend, batch.tokens, lambda each: recipe_loss(each, batch, loss), BUDGETS[case.kept])
    norm = backend.update(RATE, case.clip, lambda norm: norm < float("inf"))
    return float(part), norm


RANK_LOSS = recipe("embed").rank_loss


def recipe_loss(embeddings: Tensor, batch: Any, loss: LossConfig) -> Tensor:
    share: Tensor = RANK_LOSS(embeddings, batch, loss, DIMS, {})
    return share


def save(backend: Backend, folder: Path, rank: int) -> None:
    """A checkpoint, as the recipe writes it."""
    tensors = backend.tensors()

    def write(path: Path) -> None:
        if rank == 0:
            write_training(path, tensors, TrainingState())
        backend.save_optimizer(path)

    Checkpoints(folder).save(1, write)


def train_on_ranks(folder: Path, case: Case, rank: int, world: int) -> Weights:
    """Unsharded trained weights after three steps, on rank 0."""
    backend = prepared(folder, case, world)
    collator = collate(folder, case, backend.model, rank, world)
    for indices in global_batches():
        take_step(backend, case, collator, indices)
    return {name: each.detach().clone() for name, each in backend.tensors().items()}


def train_plainly(folder: Path, case: Case) -> tuple[Weights, Weights]:
    """Weights before and after the same steps, in one process without chunks, with the reference loss."""
    embedder = load(folder, case)
    collator = collate(folder, case, embedder, 0, 1)

    def loss_of(indices: BatchIndices) -> Tensor:
        batch = collator[indices]
        embeddings = torch.cat([embedder(chunk) for chunk in batch.tokens.chunks])[batch.tokens.position]
        return plain_loss(embeddings, batch, loss_config(case))

    return train_by_hand(embedder, loss_of, global_batches(), case.clip, RATE)


def plain_loss(embeddings: Tensor, batch: Any, loss: LossConfig) -> Tensor:
    dims, weights = list(DIMS), list(DIMS.values())
    queries, documents = gather_batch(embeddings[batch.queries], embeddings[batch.documents], batch.document_counts)
    if batch.scores is not None:
        return cosent(
            queries, documents, batch.scores, temperature=loss.graded_temperature, dims=dims, dim_weights=weights
        )
    total = info_nce(
        queries,
        documents,
        batch.structure,
        temperature=loss.temperature,
        dims=dims,
        dim_weights=weights,
        score_margin=loss.score_margin,
    )
    if batch.group is not None:
        share = torch.full((len(queries),), 1 / len(queries))
        total = total + loss.distillation_weight * distillation(
            queries,
            documents,
            batch.group,
            batch.teacher,
            share,
            temperature=loss.temperature,
            teacher_temperature=loss.teacher_temperature,
            dims=dims,
            dim_weights=weights,
        )
    return total
