"""The projection through which an embedder learns a teacher's embeddings, fitted to the model before training.

Shapes: n distinct texts of this rank, D dimensions.
"""

from collections.abc import Callable
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from nestling.batches.embed_collation import EmbedBatch
from nestling.console import working
from nestling.losses.regression import LeastSquares, Projections
from nestling.training.parts import EmbedParts
from nestling.training.teacher_terms import own_vectors

# Texts that it is fitted to, at the least: so many, and so many for each dimension, if an epoch has them.
TEXTS, TEXTS_PER_DIMENSION = 10_000, 10


def fit_projections(parts: EmbedParts, attach: Callable[[EmbedBatch], EmbedBatch]) -> Projections:
    """The projections of all dimensions, the same on all ranks, which must all call it; none without regression.

    They are fitted to the first batches of the run, whatever step it is resumed at, by the model as it was loaded.

    Args:
        parts: The model before training, and what makes batches.
        attach: Adds the teacher's embeddings to a batch.
    """
    if parts.config.loss.regression_weight == 0:
        return {}
    squares, texts = LeastSquares(list(parts.dims)), 0
    wanted, main_rank = max(TEXTS, TEXTS_PER_DIMENSION * max(parts.dims)), parts.accelerator.is_main_process
    with working("fitting the teacher's projection", shown=main_rank):
        for indices in islice(parts.batch_sampler.batches(), parts.batch_sampler.steps_per_epoch):
            if parts.batch_sampler.sources[indices.source].table.graded:
                continue
            texts += add_batch(squares, parts, attach(parts.collator[indices]))
            if texts >= wanted:
                break
        projections = squares.solve([sum_of_ranks(each, parts.accelerator.device) for each in squares.sums()])
    if main_rank:
        print(f"the teacher's projection is fitted to {texts:,} texts of the first batches", flush=True)
    return {dim: each.to(parts.accelerator.device) for dim, each in projections.items()}


def add_batch(squares: LeastSquares, parts: EmbedParts, batch: EmbedBatch) -> int:
    """Add this rank's texts, queries and documents with as much weight as in the loss; the texts of all ranks."""
    assert batch.teacher_vectors is not None
    embeddings = parts.embed(batch.tokens).cpu()
    sizes = [len(each) for each in batch.teacher_vectors]
    for of_teacher, own, size in zip(
        own_vectors(batch, batch.teacher_vectors), (batch.queries, batch.documents), sizes, strict=True
    ):
        squares.add(embeddings[own], of_teacher, 1 / size)
    return sum(sizes)


def sum_of_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor on the CPU over all ranks, on the CPU."""
    if not dist.is_initialized():
        return values
    on_device = values.to(device)
    dist.all_reduce(on_device)
    return on_device.cpu()
