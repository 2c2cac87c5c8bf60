"""The training objectives, written to be read; `nestling.losses.chunked` computes the contrastive one fast.

Shapes: Q queries and N documents of the global batch, R rows (query, positive) of this rank, C rows of a chunk,
P known positives of a query, G documents of a query's own group, B graded pairs, D dimensions.

Every loss sums over the Matryoshka dimensions: sum_p w_p L(normalize(e[:d_p])), w_p = 1 unless given
(https://arxiv.org/abs/2205.13147). Embeddings come raw, in any dtype; from there on everything is float32 (float64 for
float64 embeddings), autocast off. On a GPU, `torch.set_float32_matmul_precision` must stay at "highest": at a
temperature of 0.01 the rounding of TF32 is a tenth of a logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The least norm that is divided by: an embedding of zeros has cosine 0 with everything and gets a finite gradient.
NORM_FLOOR = 1e-6


@dataclass(frozen=True)
class Terms:
    """Which texts enter the denominator of a row.

    Args:
        hard_negatives: The hard negatives that the row's query brought.
        query_query: Other queries.
        document_document: Documents of other queries, seen from the row's positive.
        query_document: Documents of other queries, seen from the row's query.
        other_hard_negatives: Hard negatives are among the documents of other queries.
    """

    hard_negatives: bool = True
    query_query: bool = True
    document_document: bool = True
    query_document: bool = True
    other_hard_negatives: bool = True


ALL_TERMS = Terms()


@dataclass(frozen=True)
class BatchStructure:
    """Who belongs to whom in the global batch, and the rows that this rank answers for.

    Args:
        query: [R] int64, the query of each row.
        positive: [R] int64, the document that is its positive.
        weight: [R] float32, share of the row in the loss. Where the weights of all ranks sum to 1, the loss summed over
            ranks is the loss of the global batch.
        owner: [N] int64, the query that brought each document.
        is_negative: [N] bool, whether it was brought as a hard negative.
        query_text: [Q] int64 identities of texts.
        document_text: [N] int64 identities of texts.
        known_positives: [Q, P] int64 identities of all positives that the data has for each query's text, padded with
            -1.
    """

    query: Tensor
    positive: Tensor
    weight: Tensor
    owner: Tensor
    is_negative: Tensor
    query_text: Tensor
    document_text: Tensor
    known_positives: Tensor


def info_nce(
    queries: Tensor,
    documents: Tensor,
    structure: BatchStructure,
    *,
    temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
    terms: Terms = ALL_TERMS,
    score_margin: float | None = 0.1,
    mask_hard_negatives: bool = False,
    mask_identity: bool = True,
) -> Tensor:
    """The contrastive loss of Qwen3 Embedding (https://arxiv.org/abs/2506.05176, Eq. 1).

    L = sum over rows (i, +) of weight_i log(Z_i / e^{s(q_i,d_i+)/tau}), s the cosine, and

    Z_i = e^{s(q_i,d_i+)/tau} + sum_k m e^{s(q_i,d_ik-)/tau} + sum_j m e^{s(q_i,q_j)/tau}
        + sum_j m e^{s(d_i+,d_j)/tau} + sum_j m e^{s(q_i,d_j)/tau}

    over the query's own hard negatives, other queries, and twice the documents of other queries. A row without any
    negative contributes neither loss nor gradient.

    Args:
        queries: [Q, D] raw embeddings.
        documents: [N, D] raw embeddings.
        structure: Who belongs to whom.
        temperature: tau.
        dims: Matryoshka dimensions in any order, all that are to be trained: the full one is not added.
        dim_weights: w_p, aligned with `dims`; default 1 each.
        terms: Which of the sums enter.
        score_margin: m = 0 for a text that scores above s(q_i,d_i+) + score_margin at that dimension; None: never.
        mask_hard_negatives: The score mask may hit the query's own hard negatives too.
        mask_identity: m = 0 for documents with the text of a known positive of the query, for queries with its text,
            and for queries that brought one of its known positives.

    Returns:
        Scalar, float32 or float64: the weighted sum over the rows of this rank and over `dims`.

    Raises:
        ValueError: temperature, dims or dim_weights that make no sense.
    """
    check_temperature(temperature)
    steps = prefixes(dims, dim_weights, queries.shape[1])
    negatives = Negatives(structure, terms, mask_identity)
    allowed = torch.cat(negatives.allowed(slice(None)), dim=1)  # [R, N + Q + N]
    exempt = torch.zeros_like(allowed)
    if not mask_hard_negatives:
        exempt[:, : documents.shape[0]] = negatives.own(slice(None))
    loss = queries.new_zeros((), dtype=loss_dtype(queries))
    with torch.autocast(queries.device.type, enabled=False):
        for dim, dim_weight in steps:
            q, d = unit(queries, dim), unit(documents, dim)
            row, positive = q[structure.query], d[structure.positive]  # [R, dim] each
            scores = torch.cat([row @ d.T, row @ q.T, positive @ d.T], dim=1)  # [R, N + Q + N]
            target = (row * positive).sum(dim=1, keepdim=True)  # [R, 1]
            kept = allowed if score_margin is None else allowed & (exempt | (scores <= target + score_margin))
            logits = torch.cat([target, scores.masked_fill(~kept, -torch.inf)], dim=1) / temperature
            row_losses = torch.logsumexp(logits, dim=1) - logits[:, 0]
            loss = loss + dim_weight * (structure.weight * row_losses).sum()
    return loss


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
    """KL(teacher || student) between softmaxes over each query's own documents.

    Args:
        queries: [Q, D] raw embeddings.
        documents: [N, D] raw embeddings.
        group: [Q, G] int64, the documents of each query, padded with -1.
        teacher: [Q, G] scores of the teacher; what stands at the padding is not read.
        weight: [Q] share of each query in the loss; 1 / Q each for the mean.
        temperature: Divides the cosines of the student.
        teacher_temperature: Divides the teacher's scores.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar: the weighted sum over queries and over `dims`.

    Raises:
        ValueError: temperatures, dims or dim_weights that make no sense.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature)
    assert group.shape == teacher.shape == (queries.shape[0], group.shape[1]), (group.shape, teacher.shape)
    steps = prefixes(dims, dim_weights, queries.shape[1])
    dtype = loss_dtype(queries)
    padding = group < 0
    wanted = masked_log_softmax(teacher.to(dtype) / teacher_temperature, padding)  # [Q, G]
    loss = queries.new_zeros((), dtype=dtype)
    with torch.autocast(queries.device.type, enabled=False):
        for dim, dim_weight in steps:
            own = unit(documents, dim)[group.clamp_min(0)]  # [Q, G, dim]
            scores = torch.einsum("qd,qgd->qg", unit(queries, dim), own) / temperature
            loss = loss + dim_weight * (weight * divergence(wanted, masked_log_softmax(scores, padding), padding)).sum()
    return loss


def cosent(
    left: Tensor,
    right: Tensor,
    scores: Tensor,
    *,
    temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """CoSENT (https://kexue.fm/archives/8847): graded pairs are to be ordered as their labels.

    L = log(1 + sum over pairs (i, j) with scores_i > scores_j of e^{(cos_j - cos_i)/tau})

    Args:
        left: [B, D] raw embeddings.
        right: [B, D] raw embeddings, aligned with `left`.
        scores: [B] labels; only their order matters.
        temperature: tau.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar: the sum over `dims`; 0 where all labels are equal.

    Raises:
        ValueError: temperature, dims or dim_weights that make no sense.
    """
    check_temperature(temperature)
    assert left.shape == right.shape and scores.shape == left.shape[:1], (left.shape, right.shape, scores.shape)
    loss = left.new_zeros((), dtype=loss_dtype(left))
    with torch.autocast(left.device.type, enabled=False):
        for dim, dim_weight in prefixes(dims, dim_weights, left.shape[1]):
            cosines = (unit(left, dim) * unit(right, dim)).sum(dim=1) / temperature  # [B]
            inversions = (cosines - cosines[:, None])[scores[:, None] > scores]  # cos_j - cos_i where i is above j
            loss = loss + dim_weight * torch.logsumexp(F.pad(inversions, (1, 0)), dim=0)
    return loss


class Negatives:
    """Which texts may be negatives of which row, by who belongs to whom and by the identity of texts.

    The score mask is not here: it depends on the dimension.
    """

    def __init__(self, structure: BatchStructure, terms: Terms, mask_identity: bool) -> None:
        self.structure = structure
        self.terms = terms
        self.mask_identity = mask_identity
        # Distinct texts of the documents, so that membership in `known` is a look-up however many are known.
        self.texts, self.document = torch.unique(structure.document_text, return_inverse=True)  # [U], [N]

    def allowed(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Bool [C, N], [C, Q], [C, N]: documents and queries seen from the query, documents from the positive."""
        structure, terms = self.structure, self.terms
        own = structure.owner == structure.query[rows, None]
        other = ~own if terms.other_hard_negatives else ~own & ~structure.is_negative
        known = self.known_positives(rows)
        never = torch.zeros_like(own)
        from_query = (self.own(rows) if terms.hard_negatives else never) | (other if terms.query_document else never)
        from_positive = other if terms.document_document else never
        return from_query & ~known, self._queries(rows, known), from_positive & ~known

    def own(self, rows: slice) -> Tensor:
        """Bool [C, N]: the hard negatives that the row's query brought."""
        return (self.structure.owner == self.structure.query[rows, None]) & self.structure.is_negative

    def known_positives(self, rows: slice) -> Tensor:
        """Bool [C, N]: the row's positive; with the identity mask, documents with a text that is positive for it."""
        query, positive = self.structure.query[rows], self.structure.positive[rows]
        if not self.mask_identity:
            return positive[:, None] == torch.arange(len(self.document), device=positive.device)
        known = self.structure.known_positives[query]  # [C, P]
        place = torch.searchsorted(self.texts, known).clamp_max(len(self.texts) - 1)
        place = torch.where(self.texts[place] == known, place, len(self.texts))  # U: not in this batch
        table = torch.zeros(len(query), len(self.texts) + 1, dtype=torch.bool, device=query.device)
        table.scatter_(1, torch.cat([place, self.document[positive, None]], dim=1), True)
        return table[:, self.document]

    def _queries(self, rows: slice, known: Tensor) -> Tensor:
        """Bool [C, Q]."""
        structure, query = self.structure, self.structure.query[rows]
        if not self.terms.query_query:
            return torch.zeros(len(query), len(structure.query_text), dtype=torch.bool, device=query.device)
        allowed = torch.arange(len(structure.query_text), device=query.device) != query[:, None]
        if self.mask_identity:
            allowed &= structure.query_text != structure.query_text[query, None]
            row, document = torch.nonzero(known & ~structure.is_negative, as_tuple=True)
            allowed[row, structure.owner[document]] = False  # queries that share a positive must not repel each other
        return allowed


def masked_log_softmax(logits: Tensor, absent: Tensor) -> Tensor:
    """Log softmax over the present of each row, [Q, G]; what stands at the absent places is neither read nor to be."""
    lowest = torch.finfo(logits.dtype).min  # not -inf: a row without any must give finite values and gradients
    return logits.masked_fill(absent, lowest).log_softmax(dim=1)


def divergence(wanted: Tensor, given: Tensor, absent: Tensor) -> Tensor:
    """KL(wanted || given) of each row of masked log softmaxes: [Q, G] to [Q]; 0 for a row without any present."""
    return (wanted.exp() * (wanted - given)).masked_fill(absent, 0).sum(dim=1)


def prefixes(dims: Sequence[int], dim_weights: Sequence[float] | None, width: int) -> list[tuple[int, float]]:
    """The dimensions in ascending order, each with its weight; ValueError unless they fit embeddings of `width`."""
    if not dims or min(dims) < 1 or max(dims) > width or len(set(dims)) < len(dims):
        raise ValueError(f"dims are {list(dims)}; expected at least one, each once, from 1 to the embedding's {width}")
    if dim_weights is not None and len(dim_weights) != len(dims):
        raise ValueError(f"{len(dim_weights)} dim_weights for {len(dims)} dims; expected one weight for each dimension")
    return sorted(zip(dims, dim_weights if dim_weights is not None else [1.0] * len(dims), strict=True))


def check_temperature(temperature: float) -> None:
    """ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected a number above 0")


def loss_dtype(embeddings: Tensor) -> torch.dtype:
    """float64 for float64 embeddings, else float32."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def unit(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` coordinates at length 1, float32 or float64: [n, D] to [n, dim]."""
    prefix = embeddings[:, :dim].to(loss_dtype(embeddings))
    norm: Tensor = torch.linalg.vector_norm(prefix, dim=1, keepdim=True)
    return prefix / norm.clamp_min(NORM_FLOOR)
