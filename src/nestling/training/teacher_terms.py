"""The terms of an embedder's loss that a teacher gives: distillation of its scores, and regression on its embeddings.

Shapes: Q queries and N documents of the global batch, W ranks, D dimensions, T of the teacher.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nestling.batches.embed_collation import EmbedBatch
from nestling.config import LossConfig
from nestling.losses.distillation import distillation, in_batch_distillation, margin_distillation
from nestling.losses.regression import Projections, regression
from nestling.training.loss_settings import Nested, Temperatures


def teacher_terms(
    own: Tensor,
    own_documents: Tensor,
    documents: Tensor,
    batch: EmbedBatch,
    loss: LossConfig,
    nested: Nested,
    projections: Projections,
) -> Tensor:
    """This rank's part of all of them, a scalar; the parts of all ranks sum to the terms. 0 without a teacher.

    Args:
        own: [Q/W, D] raw embeddings of this rank's queries.
        own_documents: [documents of this rank, D] of its documents.
        documents: [N, D] of all documents.
        batch: The teacher's scores, or its embeddings of the whole batch.
        loss: The objective.
        nested: The dimensions and their weights.
        projections: Of regression, by dimension.
    """
    part = own.new_zeros((), dtype=torch.float32)
    weight = own.new_full((len(own),), loss.distillation_weight / len(batch.structure.query_text), dtype=torch.float32)
    temperatures: Temperatures = {"temperature": loss.temperature, "teacher_temperature": loss.teacher_temperature}
    if batch.group is not None and batch.teacher is not None:
        groups = own, documents, batch.group, batch.teacher
        if loss.distillation_objective == "kl":
            part = part + distillation(*groups, weight, **temperatures, **nested)
        else:
            positive = ~batch.structure.is_negative[batch.group]
            part = part + margin_distillation(*groups, positive, weight, **temperatures, **nested)
    if batch.teacher_vectors is not None:
        of_own, of_own_documents = own_vectors(batch, batch.teacher_vectors)
        if loss.distillation_weight:
            of_documents = batch.teacher_vectors[1]
            part = part + in_batch_distillation(own, documents, of_own, of_documents, weight, **temperatures, **nested)
        if loss.regression_weight:
            sizes = len(batch.structure.query_text), len(documents)
            for each, of_teacher, size in zip((own, own_documents), (of_own, of_own_documents), sizes, strict=True):
                share = each.new_full((len(each),), loss.regression_weight / size, dtype=torch.float32)
                part = part + regression(each, of_teacher, projections, share, **nested)
    return part


def own_vectors(batch: EmbedBatch, vectors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """[Q/W, T] and [documents of this rank, T]: the rows of this rank's texts in those of the whole batch."""
    of_queries, of_documents = vectors
    rank = dist.get_rank() if len(batch.document_counts) > 1 else 0
    queries, before = len(batch.queries), sum(batch.document_counts[:rank])
    count = batch.document_counts[rank]
    return of_queries[rank * queries : (rank + 1) * queries], of_documents[before : before + count]
