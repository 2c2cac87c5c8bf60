"""The contrastive objective, written to be read; `nestling.losses.chunked` computes the same fast.

Shapes: Q queries and N documents of the global batch, R pairs (query, positive) of this rank, D dimensions.

The loss sums over the Matryoshka dimensions (`nestling.losses.matryoshka`). Embeddings are passed as the model gives
them, in any dtype; from there on everything is float32 (float64 for float64 embeddings), without autocast. On a GPU,
`torch.set_float32_matmul_precision` must stay at "highest": at a temperature of 0.01 the rounding of TF32 changes a
logit by 0.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.losses.guide import Guide
from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.negatives import (
    NO_HARDNESS,
    REPORT_TERMS,
    BatchStructure,
    DocumentMask,
    Hardness,
    NegativeMasks,
    Terms,
)
from nestling.losses.numerics import check_temperature, loss_dtype


def info_nce(
    queries: Tensor,
    documents: Tensor,
    structure: BatchStructure,
    *,
    temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
    terms: Terms = REPORT_TERMS,
    score_margin: float | None = 0.1,
    mask_document_document: DocumentMask = "positive",
    mask_hard_negatives: bool = False,
    mask_identity: bool = True,
    hardness: Hardness = NO_HARDNESS,
    guide: Guide | None = None,
) -> Tensor:
    """The contrastive loss of Qwen3 Embedding (https://arxiv.org/abs/2506.05176, Eq. 1).

    L = sum over pairs (i, +) of weight_i log(Z_i / e^{s(q_i,d_i+)/tau}), with s the cosine, and

    Z_i = e^{s(q_i,d_i+)/tau} + sum_k m e^{s(q_i,d_ik-)/tau} + sum_j m e^{s(q_i,q_j)/tau}
        + sum_j m e^{s(d_i+,d_j)/tau} + sum_j m e^{s(q_i,d_j)/tau} [+ sum_j m e^{s(d_i+,q_j)/tau}]

    where the sums are over the query's own hard negatives, over other queries, twice over the documents of other
    queries, and, with terms.document_query, over other queries once more, as in GTE
    (https://arxiv.org/abs/2308.03281), which counts the pair itself there, too. A pair without any negative contributes
    neither loss nor gradient.

    Args:
        queries: [Q, D] embeddings, not normalised.
        documents: [N, D] embeddings, not normalised.
        structure: Which documents belong to which query, and the pairs of this rank.
        temperature: tau.
        dims: Matryoshka dimensions in any order. The full one must be among them if it is to be trained.
        dim_weights: w_p, aligned with `dims`; default 1 each.
        terms: Which of the sums are used.
        score_margin: m = 0 for a text that scores above s(q_i,d_i+) + score_margin at that dimension; None: never.
        mask_document_document: Which score `score_margin` is held against for a document that is compared with the
            positive: "query", s(q_i,d_j), as in the report; "positive", s(d_i+,d_j); "none", none, so that it stays.
        mask_hard_negatives: Whether `score_margin` applies to the query's own hard negatives, too.
        mask_identity: m = 0 for documents equal to a known positive of the query, for queries equal to the query, and
            for queries that have one of its known positives.
        hardness: Adds alpha s(q_i,d) to the logits of negative documents that are compared with the query, where s is a
            constant to the gradient.
        guide: m = 0 for what another model takes for a false negative, at all dimensions, own hard negatives included.

    Returns:
        Scalar, float32 or float64: the weighted sum over the pairs of this rank and over `dims`.

    Raises:
        ValueError: temperature, dims or dim_weights are invalid.
    """
    check_temperature(temperature)
    prefixes = weighted_dims(dims, dim_weights, queries.shape[1])
    masks = NegativeMasks(structure, terms, mask_identity, guide)
    with torch.autocast(queries.device.type, enabled=False):
        allowed = torch.cat(masks.allowed(slice(None)), dim=1)  # [R, N + Q + N + Q]
    exempt = torch.zeros_like(allowed)
    if not mask_hard_negatives:
        exempt[:, : documents.shape[0]] = masks.own_hard_negatives(slice(None))
    alpha = torch.zeros_like(allowed, dtype=loss_dtype(queries))
    alpha[:, : documents.shape[0]] = hardness.in_batch_negatives
    alpha[:, : documents.shape[0]][masks.own_hard_negatives(slice(None))] = hardness.hard_negatives
    loss = queries.new_zeros((), dtype=loss_dtype(queries))
    with torch.autocast(queries.device.type, enabled=False):
        for dim, dim_weight in prefixes:
            q, d = normalize_prefix(queries, dim), normalize_prefix(documents, dim)
            query, positive = q[structure.query], d[structure.positive]  # [R, dim] each
            from_query, queries_of_query = query @ d.T, query @ q.T
            from_positive, queries_of_positive = positive @ d.T, positive @ q.T
            scores = torch.cat([from_query, queries_of_query, from_positive, queries_of_positive], dim=1)
            target = (query * positive).sum(dim=1, keepdim=True)  # [R, 1]
            never = torch.full_like(from_positive, -torch.inf)
            by = {"query": from_query, "positive": from_positive, "none": never}[mask_document_document]
            masked_by = torch.cat([from_query, queries_of_query, by, queries_of_positive], dim=1)
            kept = allowed if score_margin is None else allowed & (exempt | (masked_by <= target + score_margin))
            negatives = (scores / temperature + alpha * scores.detach()).masked_fill(~kept, -torch.inf)
            logits = torch.cat([target / temperature, negatives], dim=1)
            row_losses = torch.logsumexp(logits, dim=1) - logits[:, 0]
            loss = loss + dim_weight * (structure.weight * row_losses).sum()
    return loss
