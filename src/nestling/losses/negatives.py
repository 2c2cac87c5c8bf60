"""Which texts of the global batch are negatives of which (query, positive) pair.

Shapes: Q queries and N documents of the global batch, R pairs (query, positive) of this rank, C of these pairs,
P known positives of a query, U distinct texts among the documents.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nestling.losses.guide import Guide

# Whose score of a document decides whether the mask by scores hits it where it is compared with the positive.
DocumentMask = Literal["query", "positive", "none"]


@dataclass(frozen=True)
class Terms:
    """Which texts enter the denominator of the contrastive loss of a (query, positive) pair.

    Args:
        hard_negatives: The hard negatives of the pair's query.
        query_query: Other queries, compared with the query.
        document_document: Documents of other queries, compared with the positive.
        query_document: Documents of other queries, compared with the query.
        document_query: Other queries, compared with the positive (GTE, https://arxiv.org/abs/2308.03281).
        other_hard_negatives: Whether the documents of other queries include their hard negatives.
    """

    hard_negatives: bool = True
    query_query: bool = True
    document_document: bool = True
    query_document: bool = True
    document_query: bool = False
    other_hard_negatives: bool = True


REPORT_TERMS = Terms()


@dataclass(frozen=True)
class Hardness:
    """Hardness weights: alpha of e^{alpha sg(s)}, by which a negative document of a query counts more, s its cosine.

    Args:
        hard_negatives: alpha of the query's own hard negatives (5 in EmbeddingGemma, https://arxiv.org/abs/2509.20354).
        in_batch_negatives: alpha of the documents of other queries (9 in LLaVE, https://arxiv.org/abs/2503.04812).
    """

    hard_negatives: float = 0.0
    in_batch_negatives: float = 0.0


NO_HARDNESS = Hardness()


@dataclass(frozen=True)
class BatchStructure:
    """Which documents of the global batch belong to which query, and the (query, positive) pairs of this rank.

    Text ids are equal for equal texts.

    Args:
        query: [R] int64, index of the query of each pair.
        positive: [R] int64, index of the document that is the positive of each pair.
        weight: [R] float32, weight of each pair in the loss. If the weights of all ranks sum to 1, the loss summed over
            ranks is the loss of the global batch.
        owner: [N] int64, index of the query that each document belongs to.
        is_negative: [N] bool, whether the document is a hard negative of that query; else it is a positive.
        query_text: [Q] int64 ids of the queries, equal where text and instruction are.
        document_text: [N] int64 text ids.
        known_positives: [Q, P] int64 text ids of all positives that the dataset has for each query, padded with -1.
    """

    query: Tensor
    positive: Tensor
    weight: Tensor
    owner: Tensor
    is_negative: Tensor
    query_text: Tensor
    document_text: Tensor
    known_positives: Tensor


class NegativeMasks:
    """Masks of the texts that may be negatives, by the structure of the batch and by equal texts.

    The mask by scores is not here, because it depends on the dimension.

    Args:
        structure: Queries and documents of the global batch.
        terms: Which texts enter the denominator.
        mask_identity: Whether texts are masked that are known not to be negatives: equal queries, known positives.
        guide: Masks what another model takes for false negatives; None masks nothing.
    """

    def __init__(
        self, structure: BatchStructure, terms: Terms, mask_identity: bool, guide: Guide | None = None
    ) -> None:
        self.structure = structure
        self.terms = terms
        self.mask_identity = mask_identity
        self.guide = guide
        # Distinct text ids of the documents, so that a query may have any number of known positives.
        self.text_ids, self.document = torch.unique(structure.document_text, return_inverse=True)  # [U], [N]

    def allowed(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Negatives of the pairs `rows`, bool.

        Returns:
            [C, N] documents and [C, Q] queries compared with the query, [C, N] documents and [C, Q] queries compared
            with the positive.
        """
        structure, terms = self.structure, self.terms
        own = structure.owner == structure.query[rows, None]
        other = ~own if terms.other_hard_negatives else ~own & ~structure.is_negative
        known = self.positive_mask(rows)
        never = torch.zeros_like(own)
        from_query = (self.own_hard_negatives(rows) if terms.hard_negatives else never) | (
            other if terms.query_document else never
        )
        from_positive = other if terms.document_document else never
        queries = self._queries(rows, known)
        never = torch.zeros_like(queries)
        masks = (
            from_query & ~known,
            queries if terms.query_query else never,
            from_positive & ~known,
            queries if terms.document_query else never,
        )
        if self.guide is None:
            return masks
        false = self.guide.false_negatives(structure.query[rows], structure.positive[rows])
        return masks[0] & ~false[0], masks[1] & ~false[1], masks[2] & ~false[2], masks[3] & ~false[3]

    def own_hard_negatives(self, rows: slice) -> Tensor:
        """Bool [C, N]: the hard negatives that belong to the query of each pair."""
        return (self.structure.owner == self.structure.query[rows, None]) & self.structure.is_negative

    def positive_mask(self, rows: slice) -> Tensor:
        """Bool [C, N]: the positive of each pair; with `mask_identity` also each equal to a known positive."""
        query, positive = self.structure.query[rows], self.structure.positive[rows]
        if not self.mask_identity:
            return positive[:, None] == torch.arange(len(self.document), device=positive.device)
        known = self.structure.known_positives[query]  # [C, P]
        index = torch.searchsorted(self.text_ids, known).clamp_max(len(self.text_ids) - 1)
        index = torch.where(self.text_ids[index] == known, index, len(self.text_ids))  # U: not in this batch
        is_known = torch.zeros(len(query), len(self.text_ids) + 1, dtype=torch.bool, device=query.device)
        is_known.scatter_(1, torch.cat([index, self.document[positive, None]], dim=1), True)
        return is_known[:, self.document]

    def _queries(self, rows: slice, known: Tensor) -> Tensor:
        """Bool [C, Q]: the queries that may be negatives of each pair, given its known positives [C, N]."""
        structure, query = self.structure, self.structure.query[rows]
        if not (self.terms.query_query or self.terms.document_query):
            return torch.zeros(len(query), len(structure.query_text), dtype=torch.bool, device=query.device)
        allowed = torch.arange(len(structure.query_text), device=query.device) != query[:, None]
        if self.mask_identity:
            allowed &= structure.query_text != structure.query_text[query, None]
            row, document = torch.nonzero(known & ~structure.is_negative, as_tuple=True)
            allowed[row, structure.owner[document]] = False  # queries that share a positive must not repel each other
        return allowed


def hard_negatives_of_queries(structure: BatchStructure) -> Tensor:
    """Indices of the hard negatives that belong to each query, [Q, H] int64, padded with -1."""
    documents = torch.nonzero(structure.is_negative).squeeze(1)
    owner, order = structure.owner[documents].sort()
    counts = torch.bincount(owner, minlength=len(structure.query_text))
    column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(dim=0) - counts)[owner]
    own = documents.new_full((len(counts), int(counts.max())), -1)
    own[owner, column] = documents[order]
    return own
