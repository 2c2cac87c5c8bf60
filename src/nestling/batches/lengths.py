"""How long the texts of a dataset are for a model, and how many of them its limits cut."""

import random
from dataclasses import dataclass

from nestling.batches.embed_collation import Collator
from nestling.batches.sampling import BatchIndices

# Rows that are tokenised to learn the lengths: all of a small dataset, a sample of a large one.
SAMPLE = 10_000


@dataclass(frozen=True)
class Lengths:
    """Token lengths of the texts that one pass over some rows uses.

    Args:
        rows: Rows looked at.
        of: Rows there are.
        queries: Distinct queries.
        documents: Distinct documents, positives and drawn negatives.
        tokens: Tokens of all of these, after truncation.
        cut_queries: Queries that are truncated.
        cut_documents: Documents that are truncated.
    """

    rows: int
    of: int
    queries: int
    documents: int
    tokens: int
    cut_queries: int
    cut_documents: int

    def __str__(self) -> str:
        sampled = "" if self.rows == self.of else f", in a sample of {self.rows:,} rows"
        return (
            f"{self.of:,} rows, {self.tokens / self.rows:.0f} tokens each; truncated {self.cut_queries:,} of "
            f"{self.queries:,} queries and {self.cut_documents:,} of {self.documents:,} documents{sampled}"
        )


def measure_lengths(collator: Collator, source: int) -> Lengths:
    """Tokenise what the first pass over a dataset uses, or a sample of it."""
    count = len(collator.sources[source].table)
    rows = list(range(count)) if count <= SAMPLE else sorted(random.Random(0).sample(range(count), SAMPLE))
    queries, documents = collator.texts(BatchIndices(source, rows, [0] * len(rows)))
    queries, documents = list(dict.fromkeys(queries)), list(dict.fromkeys(documents))
    first = collator.tokenizer(queries, collator.query_max_length)
    second = collator.tokenizer(documents, collator.document_max_length)
    return Lengths(
        rows=len(rows),
        of=count,
        queries=len(queries),
        documents=len(documents),
        tokens=sum(map(len, first.ids)) + sum(map(len, second.ids)),
        cut_queries=first.truncated,
        cut_documents=second.truncated,
    )
