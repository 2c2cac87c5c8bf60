"""The projection through which an embedder learns a teacher's embeddings, fitted to the model before training.

Shapes: Q queries and N documents of the global batch, n distinct texts of this rank.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from nestling.batches.embed_collation import EmbedBatch
from nestling.config import LossConfig, require
from nestling.losses.regression import LeastSquares, Projections
from nestling.training.loading import load_batches
from nestling.training.parts import EmbedParts
from nestling.training.teacher_terms import own_vectors

# Texts that it is fitted to, at least if an epoch has as many: ten for each of a thousand dimensions.
TEXTS = 10_000


def require_whole_model(loss: LossConfig) -> None:
    """Raise ValueError, before any weights load, where the model would be sharded when the projection is fitted."""
    require(
        loss.regression_weight == 0 or not (is_deepspeed_zero3_enabled() or is_fsdp_enabled()),
        "loss.regression_weight: its projection is fitted before training, to embeddings of a model that ZeRO-3 and "
        "FSDP2 shard; train with DDP, ZeRO-1 or ZeRO-2",
    )


def fit_projections(parts: EmbedParts, attach: Callable[[EmbedBatch], EmbedBatch]) -> Projections:
    """The projections of all dimensions, the same on all ranks, which must all call it; none without regression.

    They are fitted to the first batches of the run, whatever step it is resumed at, by the model as it was loaded.

    Args:
        parts: The model before training, and what makes batches.
        attach: Adds the teacher's embeddings to a batch.
    """
    if parts.config.loss.regression_weight == 0:
        return {}
    squares, steps = LeastSquares(list(parts.dims)), range(parts.batch_sampler.steps_per_epoch)
    texts = 0
    for batch in load_batches(parts.collator, parts.batch_sampler, steps, 0):
        vectors = attach(batch).teacher_vectors
        if vectors is not None:
            embeddings, (of_queries, of_documents) = encode_batch(parts, batch), own_vectors(batch, vectors)
            squares.add(embeddings[batch.queries.to(embeddings.device)], of_queries)
            squares.add(embeddings[batch.documents.to(embeddings.device)], of_documents)
            texts += sum(map(len, vectors))
        if texts >= TEXTS:
            break
    require(texts > 0, "loss.regression_weight: no dataset has embeddings by loss.teacher; graded pairs have none")
    projections = squares.solve([sum_of_ranks(each, parts.accelerator.device) for each in squares.sums()])
    if parts.accelerator.is_main_process:
        print(f"the teacher's projection is fitted to {texts:,} texts of the first batches", flush=True)
    return {dim: each.to(parts.accelerator.device) for dim, each in projections.items()}


@torch.no_grad()
def encode_batch(parts: EmbedParts, batch: EmbedBatch) -> Tensor:
    """[n, D] embeddings of this rank's texts, on the device."""
    parts.embedder.eval()
    tokens = batch.tokens.to(parts.accelerator.device)
    with parts.backend.computing():
        return torch.cat([parts.embedder(chunk).float() for chunk in tokens.chunks])[tokens.position]


def sum_of_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor on the CPU over all ranks, on the CPU."""
    if not dist.is_initialized():
        return values
    on_device = values.to(device)
    dist.all_reduce(on_device)
    return on_device.cpu()
