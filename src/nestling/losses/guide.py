"""False negatives found by a guide, a frozen second model (GISTEmbed, https://arxiv.org/abs/2402.16829).

Shapes: Q queries and N documents of the global batch, C (query, positive) pairs, G dimensions of the guide.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guide:
    """Masks the texts that the guide scores above its own score of the query and the positive, less a margin.

    A text is masked if g > g+ - margin, or if g > g+ - margin |g+| for a relative margin, where g+ is the guide's
    cosine of the pair's query and positive, and g that of the two texts which the loss compares.

    Args:
        queries: [Q, G] normalised embeddings of the queries by the guide, float32 or float64.
        documents: [N, G] normalised embeddings of the documents.
        margin: The margin.
        relative: Whether it is a fraction of |g+|.
    """

    queries: Tensor
    documents: Tensor
    margin: float = 0.0
    relative: bool = False

    def false_negatives(self, query: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bool masks of the pairs that [C] int64 queries and positives make.

        Returns:
            [C, N] documents and [C, Q] queries compared with the query, [C, N] documents and [C, Q] queries compared
            with the positive.
        """
        of_query, of_positive = self.queries[query], self.documents[positive]
        from_query, from_positive = of_query @ self.documents.T, of_positive @ self.documents.T
        own = from_query.gather(1, positive[:, None])  # [C, 1]
        threshold = own - self.margin * (own.abs() if self.relative else 1)
        queries = of_query @ self.queries.T > threshold, of_positive @ self.queries.T > threshold
        return from_query > threshold, queries[0], from_positive > threshold, queries[1]
