"""The steps of both recipes, with their answer to a full device, for a loss that a test gives."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nestling.backends import Backend
from nestling.batches.packing import TokenBatch
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.training.accumulated import AccumulatedPasses
from nestling.training.cached import ActivationBudget, CachedPasses
from nestling.training.retry import OutOfMemoryRetry

# What a run says that it has saved.
SAVED = Path("checkpoints/step-7")


def halved(batch: TokenBatch, halvings: int) -> TokenBatch:
    for _ in range(halvings):
        batch = batch.halved()
    return batch


def embed_retry(backend: Backend, say: Callable[[str], None], chunk_tokens: int = 1024) -> OutOfMemoryRetry[TokenBatch]:
    return OutOfMemoryRetry(
        backend, lambda batch: batch.chunks, halved, chunk_tokens=chunk_tokens, say=say, save=lambda: SAVED
    )


def embed_step(
    retry: OutOfMemoryRetry[TokenBatch],
    batch: TokenBatch,
    loss_of: Callable[[Tensor], Tensor],
    budget: ActivationBudget,
) -> Tensor:
    for attempt in retry.attempts(batch):
        with attempt, CachedPasses(attempt.backend, budget) as passes:
            loss = loss_of(passes.forward(attempt.batch))
            passes.backward(loss)
    return loss.detach()


def rerank_retry(
    backend: Backend, collator: RerankCollator, say: Callable[[str], None]
) -> OutOfMemoryRetry[RerankBatch]:
    return OutOfMemoryRetry(
        backend,
        lambda batch: batch.chunks,
        collator.in_smaller_chunks,
        chunk_tokens=collator.chunk_tokens,
        say=say,
        save=lambda: SAVED,
    )


def rerank_step(
    retry: OutOfMemoryRetry[RerankBatch],
    batch: RerankBatch,
    loss_of: Callable[[Tensor, ChunkLabels, RerankBatch], Tensor],
) -> Tensor:
    for attempt in retry.attempts(batch):
        with attempt, AccumulatedPasses(attempt.backend, attempt.batch.chunks) as passes:
            for chunk, labels in zip(attempt.batch.chunks, attempt.batch.labels, strict=True):
                passes.backward(loss_of(passes.forward(chunk), labels, attempt.batch))
    return passes.loss
