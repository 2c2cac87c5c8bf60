"""Distillation of teacher scores into an embedder.

Shapes: Q queries, C of them, N documents of the batch, G documents of a query, D dimensions, T of the teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.numerics import check_temperature, kl_divergence, loss_dtype, masked_log_softmax
from nestling.losses.reranker import margin_mse

# Queries whose scores with all documents are in memory at once.
BLOCK_QUERIES = 128


def distillation(
    queries: Tensor,
    documents: Tensor,
    group: Tensor,
    teacher: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """KL(teacher || student) between the softmaxes of scores over the documents of each query.

    Args:
        queries: [Q, D] embeddings, not normalised, in any dtype.
        documents: [N, D] embeddings, not normalised.
        group: [Q, G] int64, indices of the documents of each query, padded with -1.
        teacher: [Q, G] scores of the teacher; padded entries are ignored.
        weight: [Q] weight of each query in the loss; 1 / Q each for the mean.
        temperature: Divides the cosines of the student.
        teacher_temperature: Divides the teacher's scores.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar, float32 or float64: the weighted sum over queries and over `dims`.

    Raises:
        ValueError: temperatures, dims or dim_weights are invalid.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    assert group.shape == teacher.shape == (queries.shape[0], group.shape[1]), (group.shape, teacher.shape)
    prefixes = weighted_dims(dims, dim_weights, queries.shape[1])
    dtype = loss_dtype(queries)
    absent = group < 0
    target = masked_log_softmax(teacher.to(dtype) / teacher_temperature, absent)  # [Q, G]
    loss = queries.new_zeros((), dtype=dtype)
    with torch.autocast(queries.device.type, enabled=False):
        for dim, dim_weight in prefixes:
            scores = own_cosines(queries, documents, group, dim) / temperature
            divergence = kl_divergence(target, masked_log_softmax(scores, absent), absent)  # [Q]
            loss = loss + dim_weight * (weight * divergence).sum()
    return loss


def margin_distillation(
    queries: Tensor,
    documents: Tensor,
    group: Tensor,
    teacher: Tensor,
    positive: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """Margin-MSE of each query's cosines against a teacher's scores (`nestling.losses.reranker.margin_mse`).

    Arguments, value and errors as of `distillation`, and `positive`, [Q, G] bool: which documents are positives. A
    query without positives or without negatives contributes 0.
    """
    loss = queries.new_zeros((), dtype=loss_dtype(queries))
    with torch.autocast(queries.device.type, enabled=False):
        for dim, dim_weight in weighted_dims(dims, dim_weights, queries.shape[1]):
            errors = margin_mse(
                own_cosines(queries, documents, group, dim),
                teacher,
                positive,
                group >= 0,
                temperature=temperature,
                teacher_temperature=teacher_temperature,
            )
            loss = loss + dim_weight * (weight * errors).sum()
    return loss


def own_cosines(queries: Tensor, documents: Tensor, group: Tensor, dim: int) -> Tensor:
    """[Q, G] cosines of the first `dim` coordinates of queries and the documents of their groups."""
    own = normalize_prefix(documents, dim)[group.clamp_min(0)]  # [Q, G, dim]
    return torch.einsum("qd,qgd->qg", normalize_prefix(queries, dim), own)


def in_batch_distillation(
    queries: Tensor,
    documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    teacher_temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """KL(teacher || student) between the softmaxes of each query's cosines with all documents of the batch.

    Memory grows with N, not with Q N: blocks of queries are computed again in the backward pass.

    Args:
        queries: [Q, D] embeddings, not normalised, in any dtype.
        documents: [N, D] embeddings, not normalised.
        teacher_queries: [Q, T] normalised embeddings of the same queries by the teacher.
        teacher_documents: [N, T] of the documents.
        weight: [Q] weight of each query in the loss; 1 / Q each for the mean.
        temperature: Divides the cosines of the student.
        teacher_temperature: Divides those of the teacher.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar, float32 or float64: the weighted sum over queries and over `dims`.

    Raises:
        ValueError: temperatures, dims or dim_weights are invalid.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    assert len(teacher_queries) == len(queries) and len(teacher_documents) == len(documents)
    prefixes = weighted_dims(dims, dim_weights, queries.shape[1])
    dtype = loss_dtype(queries)

    def block(own: Tensor, documents: Tensor, of_teacher: Tensor, weight: Tensor) -> Tensor:
        target = (of_teacher.to(dtype) @ teacher_documents.to(dtype).T / teacher_temperature).log_softmax(
            dim=1
        )  # [C, N]
        loss = own.new_zeros((), dtype=dtype)
        for dim, dim_weight in prefixes:
            cosines = normalize_prefix(own, dim) @ normalize_prefix(documents, dim).T  # [C, N]
            student = (cosines / temperature).log_softmax(dim=1)
            loss = loss + dim_weight * (weight * kl_divergence(target, student)).sum()
        return loss

    loss = queries.new_zeros((), dtype=dtype)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), BLOCK_QUERIES):
            rows = slice(start, start + BLOCK_QUERIES)
            loss = loss + checkpoint(
                block,
                queries[rows],
                documents,
                teacher_queries[rows],
                weight[rows],
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return loss
