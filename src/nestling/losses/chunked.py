"""The contrastive loss of `nestling.losses.reference` in blocks of rows: the same value and gradient, all dimensions
for about the price of one, in O((N + Q) D) memory.

Shapes: Q queries and N documents of the global batch, S = N + Q texts (documents first), R rows, which are the
(query, positive) pairs of this rank, C rows of a block. M columns: the texts compared with a row's query (documents,
then queries), then those compared with its positive (documents, then queries). H hard negatives of a query. D
dimensions, P Matryoshka prefixes; slice p is the coordinates that prefix p has and prefix p - 1 has not.

For raw texts a, b with inverse norms r^p of their prefixes and weights w_p, a block of rows takes these steps:
1. Products grow slice by slice, G^p = G^{p-1} + A_p B_p^T, one full product for all prefixes; scores
   T^p = r_a r_b G^p / tau.
2. Row losses log(Z / e^{T+}), negatives of Z with their hardness weights h, shifted by the positive's or the greatest
   score; then the gradient with respect to T^p is W^p = w_p weight h e^{T^p} / Z for negatives, and for the positive
   minus their sum. Scores are held in bits, T^p / ln 2, because torch has a vectorised exp2 that is not slow where
   masked scores underflow.
3. Coefficients C^p = W^p r_a r_b / tau; slice b of the texts needs E^b = sum over p >= b of C^p: dA_b = E^b B_b,
   dB_b = (E^b)^T A_b, one full product each.
4. The norms: u^p = sums of W^p T^p over rows and over columns; at the end dx_b -= sum over p >= b of u^p (r^p)^2 x_b.
The loss is a scalar, so the gradient is made in the forward pass and only scaled in the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.losses.guide import Guide
from nestling.losses.matryoshka import NORM_FLOOR, weighted_dims
from nestling.losses.negatives import (
    NO_HARDNESS,
    REPORT_TERMS,
    BatchStructure,
    DocumentMask,
    Hardness,
    NegativeMasks,
    Terms,
    hard_negatives_of_queries,
)
from nestling.losses.numerics import check_temperature, loss_dtype
from nestling.losses.row_blocks import LN2, Anchor, Objective, RowBlock, block_rows

# The product of a masked pair: far below every score for texts of norm 1e-6 to 1e8, and finite (-inf times 0 is NaN).
MASKED = -1e20


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
    """`nestling.losses.reference.info_nce`, which documents arguments, value and errors."""
    check_temperature(temperature)
    objective = Objective(
        structure=structure,
        negatives=NegativeMasks(structure, terms, mask_identity, guide),
        prefixes=weighted_dims(dims, dim_weights, queries.shape[1]),
        temperature=temperature,
        terms=terms,
        score_margin=score_margin,
        mask_document_document=mask_document_document,
        mask_hard_negatives=mask_hard_negatives,
        hardness=hardness,
    )
    dtype = loss_dtype(queries)
    queries, documents = queries.to(dtype), documents.to(dtype)
    if torch.is_grad_enabled() and (queries.requires_grad or documents.requires_grad):
        loss: Tensor = ChunkedInfoNCE.apply(queries, documents, objective)
        return loss
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        return ChunkedLoss(queries, documents, objective, gradients=False).loss()


class ChunkedInfoNCE(torch.autograd.Function):
    """The loss for autograd; its forward pass has already computed the gradient."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, objective: Objective) -> Tensor:
        chunked = ChunkedLoss(queries, documents, objective, gradients=True)
        with torch.autocast(queries.device.type, enabled=False):
            loss = chunked.loss()
        ctx.save_for_backward(chunked.gradient)
        ctx.documents = len(documents)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient = ctx.saved_tensors[0] * scale
        return gradient[ctx.documents :], gradient[: ctx.documents], None


class ChunkedLoss:
    """One evaluation of the loss, with its gradient if `gradients`.

    Args:
        queries: [Q, D] float32 or float64 embeddings.
        documents: [N, D] embeddings.
        objective: The other arguments of the loss.
        gradients: Whether to compute the gradient.

    Attributes:
        gradient: [S, D] gradient of the documents, then of the queries; complete once `loss` has been called.
    """

    def __init__(self, queries: Tensor, documents: Tensor, objective: Objective, *, gradients: bool) -> None:
        self.objective = objective
        self.gradients = gradients
        self.n = len(documents)
        self.texts = torch.cat([documents, queries])  # [S, D]
        ends = [dim for dim, _ in objective.prefixes]
        self.slices = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.inverse = self._inverse_norms()  # [P, S]
        # Texts compared with the query, and with the positive.
        self.with_query = len(self.texts) if objective.terms.query_query else self.n
        self.with_positive = self.n if objective.terms.document_document else 0
        if objective.terms.document_query:
            self.with_positive = len(self.texts)
        columns = [self.inverse[:, : self.with_query], self.inverse[:, : self.with_positive]]
        self.column_inverse = torch.cat(columns, dim=1)  # [P, M]
        self.hard_negatives = hard_negatives_of_queries(objective.structure)  # [Q, H]
        if gradients:
            self.gradient = torch.zeros_like(self.texts)
            self.radial = torch.zeros_like(self.inverse)  # u, from rows
            self.column_radial = torch.zeros_like(self.column_inverse)  # u, from columns

    def loss(self) -> Tensor:
        """The loss, a scalar."""
        rows, columns = len(self.objective.structure.query), self.column_inverse.shape[1]
        kept = len(self.slices) if self.gradients else 1
        size = max(1, min(rows, block_rows((kept + 2) * columns, self.texts.numel())))
        # Buffers are made once: a large one that is freed goes back to the system, and page faults cost more time than
        # the arithmetic.
        products = self.texts.new_empty(size, columns)
        coefficients = self.texts.new_empty(kept, size, columns)
        scores = self.texts.new_empty(size, columns)
        losses = self.texts.new_zeros(rows)
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            count = part.stop - part.start
            block = self._block(part, products[:count], scores[:count], coefficients[:, :count])
            losses[part] = self._losses(block)
        if self.gradients:
            self._subtract_radial()
        return losses.sum()

    def _inverse_norms(self) -> Tensor:
        """[P, S] inverse norms of the prefixes of all texts."""
        squares = [torch.linalg.vector_norm(self.texts[:, dims], dim=1).square() for dims in self.slices]
        return torch.stack(squares).cumsum(dim=0).sqrt().clamp_min(NORM_FLOOR).reciprocal()

    def _block(self, rows: slice, products: Tensor, scores: Tensor, coefficients: Tensor) -> RowBlock:
        structure = self.objective.structure
        anchors = [self._anchor(self.n + structure.query[rows], slice(0, self.with_query), self.with_query)]
        if self.with_positive:
            columns = slice(self.with_query, self.with_query + self.with_positive)
            anchors.append(self._anchor(structure.positive[rows], columns, self.with_positive))
        only_mask = self._mask(rows, products)
        weight = structure.weight[rows, None].to(products.dtype)
        positive, own = structure.positive[rows, None], self.hard_negatives[structure.query[rows]]
        own = torch.where(own < 0, positive, own)
        exempt = positive if self.objective.mask_hard_negatives else torch.cat([positive, own], dim=1)
        return RowBlock(anchors, weight, own, exempt, only_mask, products, scores, coefficients)

    def _anchor(self, texts: Tensor, columns: slice, compared: int) -> Anchor:
        scale = (self.inverse[:, texts] / (self.objective.temperature * LN2)).unsqueeze(2)
        return Anchor(texts, self.texts[texts], scale, columns, compared)

    def _mask(self, rows: slice, products: Tensor) -> Tensor | None:
        """Initialise the products: 0 where the score is used, MASKED elsewhere; returns `RowBlock.only_mask`."""
        terms = self.objective.terms
        from_query, queries, from_positive, queries_of_positive = self.objective.negatives.allowed(rows)
        from_query.scatter_(1, self.objective.structure.positive[rows].unsqueeze(1), True)
        only_mask = None
        if self.objective.only_masks:
            only_mask = (from_positive & ~from_query).to(products.dtype)
            from_query |= from_positive
        masks = [from_query]
        if terms.query_query:
            masks.append(queries)
        if self.with_positive:
            masks.append(from_positive)
        if terms.document_query:
            masks.append(queries_of_positive)
        products.copy_(torch.cat(masks, dim=1)).sub_(1).mul_(-MASKED)
        return only_mask

    def _losses(self, block: RowBlock) -> Tensor:
        """Weighted losses of the block's rows, [C]; adds their gradient to `gradient`."""
        losses = torch.zeros_like(block.weight)
        for p, dims in enumerate(self.slices):
            for anchor in block.anchors:
                texts = self.texts[: anchor.compared, dims]
                block.products[:, anchor.columns].addmm_(anchor.embeddings[:, dims], texts.t())
            losses += self._prefix_losses(p, block)
        if self.gradients:
            self._multiply(block)
        return losses.squeeze(1)

    def _prefix_losses(self, p: int, block: RowBlock) -> Tensor:
        """Weighted losses of one prefix, [C, 1]; stores the coefficients C^p and adds up u^p."""
        scores, weights = block.scores, block.coefficients[p if self.gradients else 0]
        torch.mul(block.products, self.column_inverse[p], out=scores)
        for anchor in block.anchors:
            scores[:, anchor.columns].mul_(anchor.scale[p])
        positive = block.exempt[:, :1]
        target = scores.gather(1, positive)  # [C, 1]
        if self.objective.margin_bits is not None:
            self._mask_scores(block, target + self.objective.margin_bits, weights)
        logits = self._logits(block, target, weights)
        shift = target if self.objective.bounded else logits.amax(dim=1, keepdim=True)
        torch.sub(logits, shift, out=weights).exp2_().scatter_(1, positive, 0)
        total = weights.sum(dim=1, keepdim=True)  # of the negatives, in units of 2^shift
        below = (target - shift) * LN2
        partition = total + torch.expm1(below)  # Z - 1 in these units: small losses keep their digits
        weight = self.objective.prefixes[p][1] * block.weight
        if self.gradients:
            weights.scatter_(1, positive, -total)
            scores.mul_(weights)
            self._differentiate(p, block, LN2 * weight / (1 + partition))
        return weight * (torch.log1p(partition) - below)

    def _mask_scores(self, block: RowBlock, threshold: Tensor, buffer: Tensor) -> None:
        """Mask the scores above the threshold [C, 1] in place; the buffer [C, M] is overwritten."""
        scores = block.scores
        # 1 or 0 as floats: comparing and adding these is several times faster than a bool mask and masked_fill.
        above = torch.gt(scores, threshold, out=buffer).scatter_(1, block.exempt, 0)
        documents = slice(self.with_query, self.with_query + min(self.n, self.with_positive))
        if self.objective.mask_document_document != "positive":
            above[:, documents] = above[:, : self.n] if self.objective.masks_by_query else 0
        scores.add_(above, alpha=MASKED)
        if block.only_mask is not None:
            scores[:, : self.n].add_(block.only_mask, alpha=MASKED)

    def _logits(self, block: RowBlock, target: Tensor, buffer: Tensor) -> Tensor:
        """[C, M] scores with what hardness adds to those of documents with the query, in the buffer if it adds any."""
        scores, hardness = block.scores, self.objective.hardness
        if hardness == NO_HARDNESS:
            return scores
        own = scores.gather(1, block.hard_negatives) * (1 + hardness.hard_negatives * self.objective.temperature)
        logits = buffer.copy_(scores)
        logits[:, : self.n].mul_(1 + hardness.in_batch_negatives * self.objective.temperature)
        return logits.scatter_(1, block.hard_negatives, own).scatter_(1, block.exempt[:, :1], target)

    def _differentiate(self, p: int, block: RowBlock, factor: Tensor) -> None:
        """Turn weights into coefficients C^p and add up u^p; both still lack `factor` [C, 1], one for each row."""
        radial, coefficients = block.scores, block.coefficients[p]
        self.column_radial[p].addmv_(radial.t(), factor.squeeze(1))
        coefficients.mul_(self.column_inverse[p])
        for anchor in block.anchors:
            of_rows = radial[:, anchor.columns].sum(dim=1) * factor.squeeze(1)
            self.radial[p].index_add_(0, anchor.texts, of_rows)
            coefficients[:, anchor.columns].mul_(anchor.scale[p] * factor)

    def _multiply(self, block: RowBlock) -> None:
        """dA_b = E^b B_b and dB_b = (E^b)^T A_b for all slices, from the last, with E^b summed in place."""
        for p in reversed(range(len(self.slices))):
            dims, coefficients = self.slices[p], block.coefficients[p]
            if p + 1 < len(self.slices):
                coefficients.add_(block.coefficients[p + 1])
            for anchor in block.anchors:
                compared = coefficients[:, anchor.columns]
                gradient = self.gradient[:, dims]
                gradient.index_add_(0, anchor.texts, compared @ self.texts[: anchor.compared, dims])
                gradient[: anchor.compared].addmm_(compared.t(), anchor.embeddings[:, dims])

    def _subtract_radial(self) -> None:
        """Step 4. A norm below the floor is divided by a constant, so that its gradient has no radial part."""
        self.radial[:, : self.with_query] += self.column_radial[:, : self.with_query]
        self.radial[:, : self.with_positive] += self.column_radial[:, self.with_query :]
        radial = (self.radial * self.inverse.square()).masked_fill_(self.inverse >= 1 / NORM_FLOOR, 0)
        radial = radial.flip(0).cumsum(dim=0).flip(0)  # sum over p >= b
        for dims, of_slice in zip(self.slices, radial, strict=True):
            self.gradient[:, dims].addcmul_(self.texts[:, dims], of_slice.unsqueeze(1), value=-1)
