"""Blocks of rows of the chunked contrastive loss: their size, their buffers, and what they are computed with.

Shapes: as in `nestling.losses.chunked`.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from nestling.losses.negatives import BatchStructure, DocumentMask, Hardness, NegativeMasks, Terms

# Fewer rows make thin matrix products and many small operations, whose threads wait for each other; more take memory.
BLOCK_ROWS = 128
# All buffers of a block together may hold so many elements (64 MiB in float32: 128 rows of up to 8,000 pairs in 3
# dims), or four times the embeddings, which a step holds several times anyway. With three dimensions of 128 that comes
# to 68 rows however large the batch: 64 take 5 % longer than 128, 32 take 20 % longer.
BUFFER_ELEMENTS = 2**24
BUFFERS_TO_EMBEDDINGS = 4
# Exponents up to this need no search for the greatest score: 2^40 times any number of texts is finite in float32.
SAFE_BITS = 40.0
LN2 = math.log(2)


@dataclass(frozen=True)
class Objective:
    """What to compute: the arguments of `info_nce` except the embeddings."""

    structure: BatchStructure
    negatives: NegativeMasks
    prefixes: list[tuple[int, float]]
    temperature: float
    terms: Terms
    score_margin: float | None
    mask_document_document: DocumentMask
    mask_hard_negatives: bool
    hardness: Hardness

    @property
    def bounded(self) -> bool:
        """Whether the mask by scores keeps every exponent small when scores are shifted by the positive's."""
        unmasked = (self.terms.hard_negatives and not self.mask_hard_negatives) or (
            self.terms.document_document and self.mask_document_document != "positive"
        )
        hardness = max(self.hardness.hard_negatives, self.hardness.in_batch_negatives) / LN2  # of a cosine of 1
        return self.margin_bits is not None and not unmasked and self.margin_bits + hardness <= SAFE_BITS

    @property
    def masks_by_query(self) -> bool:
        """Whether documents compared with the positive are masked by the query's score."""
        used = self.terms.document_document and self.score_margin is not None
        return used and self.mask_document_document == "query"

    @property
    def only_masks(self) -> bool:
        """Whether a document may be masked by its score with the query without being a negative there."""
        return self.masks_by_query and not (self.terms.query_document and self.negatives.guide is None)

    @property
    def margin_bits(self) -> float | None:
        """The score margin in the units of the scores, bits."""
        return None if self.score_margin is None else self.score_margin / (self.temperature * LN2)


@dataclass(frozen=True)
class Anchor:
    """One of the two texts of a row that others are compared with, its query or its positive, for the rows of a block.

    Args:
        texts: [C] int64, indices of the anchors among the S texts.
        embeddings: [C, D] embeddings of the anchors.
        scale: [P, C, 1] inverse norms of the anchors over the temperature, in bits.
        columns: The columns, of M, of the texts that are compared with the anchors.
        compared: Number of these texts; they are the first of the S texts.
    """

    texts: Tensor
    embeddings: Tensor
    scale: Tensor
    columns: slice
    compared: int


@dataclass(frozen=True)
class RowBlock:
    """Some rows, and the buffers that they are computed in.

    Args:
        anchors: The rows' queries and, if documents are compared with them, their positives.
        weight: [C, 1] weight of each row in the loss.
        hard_negatives: [C, H] int64, columns of the query's own hard negatives, padded with that of the positive.
        exempt: [C, 1] or [C, 1 + H] int64, columns that the mask by scores must not mask; the first is the positive's.
        products: [C, M], G of the current prefix.
        scores: [C, M], T of the current prefix in bits, then weights x scores.
        only_mask: [C, N], 1 for documents whose score with the query counts nowhere, but masks them where they are
            compared with the positive; None where there are none.
        coefficients: [P, C, M], first the weights W^p, then the coefficients C^p and their sums E^b; [1, C, M] where
            no gradient is wanted.
    """

    anchors: list[Anchor]
    weight: Tensor
    hard_negatives: Tensor
    exempt: Tensor
    only_mask: Tensor | None
    products: Tensor
    scores: Tensor
    coefficients: Tensor


def block_rows(elements: int, embeddings: int) -> int:
    """Number of rows of a block.

    Args:
        elements: Elements of the buffers for each row.
        embeddings: Elements of the embeddings of all texts.
    """
    return max(1, min(BLOCK_ROWS, max(BUFFER_ELEMENTS, BUFFERS_TO_EMBEDDINGS * embeddings) // elements))
