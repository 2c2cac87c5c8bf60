"""The contrastive loss of `nestling.losses.reference` in chunks of rows: the same value and gradient, all dimensions
for about the price of one.

Shapes: Q queries and N documents of the global batch, S = N + Q texts, R rows (query, positive) of this rank, C rows
of a chunk, M columns: documents and queries seen from the query, then documents seen from the
positive. D dimensions, P prefixes of them; block p are the coordinates that prefix p has more than the one before.

For raw texts a, b with inverse norms r^p of their prefixes and weights w_p, a chunk of rows takes these steps:
1. Products grow block by block, G^p = G^{p-1} + A_p B_p^T, one full product for all prefixes; scores
   T^p = r_a r_b G^p / tau.
2. Row losses log(Z / e^{T+}), shifted by the positive's or the greatest score; then the gradient with respect to T^p is
   W^p = w_p weight e^{T^p} / Z for negatives, and for the positive minus their sum. Scores are held in bits,
   T^p / ln 2, because torch has a vectorised exp2 whose speed does not suffer where masked scores underflow.
3. Coefficients C^p = W^p r_a r_b / tau; block b of the texts needs E^b = sum over p >= b of C^p: dA_b = E^b B_b,
   dB_b = (E^b)^T A_b, one full product each.
4. The norms: u^p = sums of W^p T^p over rows and over columns; at the end dx_b -= sum over p >= b of u^p (r^p)^2 x_b.
The loss is a scalar, so the gradient is made here in the forward and only scaled in the backward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.losses.reference import (
    ALL_TERMS,
    NORM_FLOOR,
    BatchStructure,
    Negatives,
    Terms,
    check_temperature,
    loss_dtype,
    prefixes,
)

# Fewer rows make thin products and many small operations, whose threads then wait for each other; more take memory.
CHUNK_ROWS = 128
# All buffers of a chunk may hold so many elements (64 MiB in float32: 128 rows of up to 8,000 pairs in 3 dims),
# or four times the embeddings, which a step holds several times anyway. With three dimensions of 128 that comes to 68
# rows however large the batch: 64 take 5 % longer than 128, 32 take 20 % longer.
BUFFER_ELEMENTS = 2**24
BUFFERS_TO_EMBEDDINGS = 4
# The product of a masked pair: far below every score for texts of norm 1e-6 to 1e8, and finite (-inf times 0 is NaN).
MASKED = -1e20
# Exponents up to this need no search for the greatest score: 2^40 times any number of texts is finite in float32.
SAFE_BITS = 40.0
LN2 = math.log(2)


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
    """`nestling.losses.reference.info_nce`, which documents arguments, value and errors, in O((N + Q) D) memory."""
    check_temperature(temperature)
    objective = Objective(
        structure=structure,
        negatives=Negatives(structure, terms, mask_identity),
        prefixes=prefixes(dims, dim_weights, queries.shape[1]),
        temperature=temperature,
        terms=terms,
        score_margin=score_margin,
        mask_hard_negatives=mask_hard_negatives,
    )
    dtype = loss_dtype(queries)
    queries, documents = queries.to(dtype), documents.to(dtype)
    if torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad):
        loss: Tensor = ChunkedInfoNCE.apply(queries, documents, objective)
        return loss
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        return ChunkedLoss(queries, documents, objective, gradients=False).loss()


class ChunkedInfoNCE(torch.autograd.Function):
    """The scalar for autograd, with the gradient that its forward has made."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, objective: "Objective") -> Tensor:
        stream = ChunkedLoss(queries, documents, objective, gradients=True)
        with torch.autocast(queries.device.type, enabled=False):
            loss = stream.loss()
        ctx.save_for_backward(stream.gradient)
        ctx.documents = len(documents)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient = ctx.saved_tensors[0] * scale
        return gradient[ctx.documents :], gradient[: ctx.documents], None


@dataclass(frozen=True)
class Objective:
    """What is to be computed: the arguments of `info_nce` but the embeddings."""

    structure: BatchStructure
    negatives: Negatives
    prefixes: list[tuple[int, float]]
    temperature: float
    terms: Terms
    score_margin: float | None
    mask_hard_negatives: bool

    @property
    def bounded(self) -> bool:
        """Whether the score mask keeps every exponent small when scores are shifted by the positive's."""
        exempt = self.terms.hard_negatives and not self.mask_hard_negatives
        return self.margin_bits is not None and not exempt and self.margin_bits <= SAFE_BITS

    @property
    def margin_bits(self) -> float | None:
        return None if self.score_margin is None else self.score_margin / (self.temperature * LN2)


@dataclass(frozen=True)
class Side:
    """One of the two texts that a row looks from, for the rows of a chunk.

    Args:
        texts: [C] int64, which of the S texts.
        left: [C, D] these.
        scale: [P, C, 1] their inverse norms over the temperature, in bits.
        columns: Where in M the texts stand that it looks at.
        right: How many of the S texts these are, counted from the first.
    """

    texts: Tensor
    left: Tensor
    scale: Tensor
    columns: slice
    right: int


@dataclass(frozen=True)
class RowBlock:
    """Some rows, with the buffers that they work in.

    Args:
        sides: The rows' queries and, if they look from them, their positives.
        weight: [C, 1] share of each row in the loss.
        exempt: [C, 1 + H] int64, columns that the score mask may not hit; the first is the positive's.
        products: [C, M], G of the prefix in work.
        scores: [C, M], its T in bits, then weights x scores.
        slots: [P, C, M], first weights, then coefficients C^p and their sums E^b; one slot where no gradient is wanted.
    """

    sides: list[Side]
    weight: Tensor
    exempt: Tensor
    products: Tensor
    scores: Tensor
    slots: Tensor


class ChunkedLoss:
    """One evaluation of the loss, and of its gradient if asked for."""

    def __init__(self, queries: Tensor, documents: Tensor, objective: Objective, *, gradients: bool) -> None:
        self.objective = objective
        self.gradients = gradients
        self.n = len(documents)
        self.texts = torch.cat([documents, queries])  # [S, D]
        ends = [dim for dim, _ in objective.prefixes]
        self.blocks = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.inverse = self._inverse_norms()  # [P, S]
        self.seen = len(self.texts) if objective.terms.query_query else self.n  # texts seen from the query
        seen_from_positive = self.n if objective.terms.document_document else 0
        self.column_inverse = torch.cat([self.inverse[:, : self.seen], self.inverse[:, :seen_from_positive]], dim=1)
        self.own = own_negatives(objective.structure)  # [Q, H]
        if gradients:
            self.gradient = torch.zeros_like(self.texts)
            self.radial = torch.zeros_like(self.inverse)  # u, from rows
            self.column_radial = torch.zeros_like(self.column_inverse)  # u, from columns

    def loss(self) -> Tensor:
        """The loss; afterwards `gradient` [S, D] is complete."""
        rows, columns = len(self.objective.structure.query), self.column_inverse.shape[1]
        kept = len(self.blocks) if self.gradients else 1
        size = max(1, min(rows, chunk_rows((kept + 2) * columns, self.texts.numel())))
        # Buffers are made once: a freed large one goes back to the system, and page faults cost more than the sums.
        products = self.texts.new_empty(size, columns)
        slots = self.texts.new_empty(kept, size, columns)
        scores = self.texts.new_empty(size, columns)
        losses = self.texts.new_zeros(rows)
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            count = part.stop - part.start
            losses[part] = self._losses(self._chunk(part, products[:count], scores[:count], slots[:, :count]))
        if self.gradients:
            self._subtract_radial()
        return losses.sum()

    def _inverse_norms(self) -> Tensor:
        squares = [torch.linalg.vector_norm(self.texts[:, block], dim=1).square() for block in self.blocks]
        return torch.stack(squares).cumsum(dim=0).sqrt().clamp_min(NORM_FLOOR).reciprocal()

    def _chunk(self, rows: slice, products: Tensor, scores: Tensor, slots: Tensor) -> RowBlock:
        objective, structure = self.objective, self.objective.structure
        positive = structure.positive[rows]
        looks = [(self.n + structure.query[rows], slice(0, self.seen), self.seen)]
        if objective.terms.document_document:
            looks.append((positive, slice(self.seen, self.seen + self.n), self.n))
        sides = [
            Side(
                texts=texts,
                left=self.texts[texts],
                scale=(self.inverse[:, texts] / (objective.temperature * LN2)).unsqueeze(2),
                columns=columns,
                right=right,
            )
            for texts, columns, right in looks
        ]
        self._mask(rows, products)
        weight = structure.weight[rows, None].to(products.dtype)
        return RowBlock(sides, weight, self._exempt(rows), products, scores, slots)

    def _exempt(self, rows: slice) -> Tensor:
        positive = self.objective.structure.positive[rows, None]
        if self.objective.mask_hard_negatives:
            return positive
        own = self.own[self.objective.structure.query[rows]]
        return torch.cat([positive, torch.where(own < 0, positive, own)], dim=1)

    def _mask(self, rows: slice, products: Tensor) -> None:
        """Start the products: 0 for the positive and for negatives, far below for all others."""
        terms = self.objective.terms
        from_query, queries, from_positive = self.objective.negatives.allowed(rows)
        from_query.scatter_(1, self.objective.structure.positive[rows].unsqueeze(1), True)
        masks = [from_query]
        if terms.query_query:
            masks.append(queries)
        if terms.document_document:
            masks.append(from_positive)
        products.copy_(torch.cat(masks, dim=1)).sub_(1).mul_(-MASKED)

    def _losses(self, chunk: RowBlock) -> Tensor:
        """Weighted losses of the chunk's rows, [C]; their gradient is added up."""
        losses = torch.zeros_like(chunk.weight)
        for p, block in enumerate(self.blocks):
            for side in chunk.sides:
                right = self.texts[: side.right, block]
                chunk.products[:, side.columns].addmm_(side.left[:, block], right.t())
            losses += self._prefix_losses(p, chunk)
        if self.gradients:
            self._multiply(chunk)
        return losses.squeeze(1)

    def _prefix_losses(self, p: int, chunk: RowBlock) -> Tensor:
        """[C, 1] of one prefix; leaves the coefficients C^p in its slot and adds up u^p."""
        scores, weights = chunk.scores, chunk.slots[p if self.gradients else 0]
        torch.mul(chunk.products, self.column_inverse[p], out=scores)
        for side in chunk.sides:
            scores[:, side.columns].mul_(side.scale[p])
        positive = chunk.exempt[:, :1]
        target = scores.gather(1, positive)  # [C, 1]
        if self.objective.margin_bits is not None:
            # 1 or 0 as floats: comparing and adding these is several times faster than a bool mask and masked_fill.
            above = torch.gt(scores, target + self.objective.margin_bits, out=weights)
            scores.add_(above.scatter_(1, chunk.exempt, 0), alpha=MASKED)
        shift = target if self.objective.bounded else scores.amax(dim=1, keepdim=True)
        torch.sub(scores, shift, out=weights).exp2_().scatter_(1, positive, 0)
        total = weights.sum(dim=1, keepdim=True)  # of the negatives, in units of 2^shift
        below = (target - shift) * LN2
        partition = total + torch.expm1(below)  # Z - 1 in these units: small losses keep their digits
        weight = self.objective.prefixes[p][1] * chunk.weight
        if self.gradients:
            weights.scatter_(1, positive, -total)
            scores.mul_(weights)
            self._differentiate(p, chunk, LN2 * weight / (1 + partition))
        return weight * (torch.log1p(partition) - below)

    def _differentiate(self, p: int, chunk: RowBlock, share: Tensor) -> None:
        """Turn weights into coefficients and add up weights x scores; both lack `share` [C, 1], the rows' factor."""
        radial, coefficients = chunk.scores, chunk.slots[p]
        self.column_radial[p].addmv_(radial.t(), share.squeeze(1))
        coefficients.mul_(self.column_inverse[p])
        for side in chunk.sides:
            of_rows = radial[:, side.columns].sum(dim=1) * share.squeeze(1)
            self.radial[p].index_add_(0, side.texts, of_rows)
            coefficients[:, side.columns].mul_(side.scale[p] * share)

    def _multiply(self, chunk: RowBlock) -> None:
        """dA_b = E^b B_b and dB_b = (E^b)^T A_b for all blocks, from the last, with E^b summed in place."""
        for p in reversed(range(len(self.blocks))):
            block, coefficients = self.blocks[p], chunk.slots[p]
            if p + 1 < len(self.blocks):
                coefficients.add_(chunk.slots[p + 1])
            for side in chunk.sides:
                seen = coefficients[:, side.columns]
                gradient = self.gradient[:, block]
                gradient.index_add_(0, side.texts, seen @ self.texts[: side.right, block])
                gradient[: side.right].addmm_(seen.t(), side.left[:, block])

    def _subtract_radial(self) -> None:
        """Step 4. A norm under the floor is divided by a constant and has no radial part."""
        self.radial[:, : self.seen] += self.column_radial[:, : self.seen]
        if self.objective.terms.document_document:
            self.radial[:, : self.n] += self.column_radial[:, self.seen :]
        radial = (self.radial * self.inverse.square()).masked_fill_(self.inverse >= 1 / NORM_FLOOR, 0)
        radial = radial.flip(0).cumsum(dim=0).flip(0)  # sum over p >= b
        for block, each in zip(self.blocks, radial, strict=True):
            self.gradient[:, block].addcmul_(self.texts[:, block], each.unsqueeze(1), value=-1)


def chunk_rows(elements: int, embeddings: int) -> int:
    """How many rows a chunk takes.

    Args:
        elements: In the buffers, for each row.
        embeddings: Elements of all texts' embeddings.
    """
    return max(1, min(CHUNK_ROWS, max(BUFFER_ELEMENTS, BUFFERS_TO_EMBEDDINGS * embeddings) // elements))


def own_negatives(structure: BatchStructure) -> Tensor:
    """[Q, H] int64: the hard negatives that each query brought, padded with -1 to the most of any."""
    documents = torch.nonzero(structure.is_negative).squeeze(1)
    owner, order = structure.owner[documents].sort()
    counts = torch.bincount(owner, minlength=len(structure.query_text))
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(dim=0) - counts)[owner]
    own = documents.new_full((len(counts), int(counts.max())), -1)
    own[owner, place] = documents[order]
    return own
