"""Token lengths of a dataset's texts, and how many of them the length limits truncate."""

import random
from dataclasses import dataclass

from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.sampling import BatchIndices

# Rows that are tokenised to measure lengths: all rows of a smaller dataset, a random sample of a larger one.
SAMPLE_ROWS = 10_000


@dataclass(frozen=True)
class Lengths:
    """Token lengths of the texts that the first row epoch of a dataset uses.

    Args:
        rows: Rows that were measured.
        total_rows: Rows of the dataset.
        queries: Distinct queries.
        documents: Distinct documents: positives and sampled negatives.
        tokens: Tokens of all these texts, after truncation.
        truncated_queries: Queries that are truncated.
        truncated_documents: Documents that are truncated.
    """

    rows: int
    total_rows: int
    queries: int
    documents: int
    tokens: int
    truncated_queries: int
    truncated_documents: int

    def __str__(self) -> str:
        sampled = "" if self.rows == self.total_rows else f", in a sample of {self.rows:,} rows"
        return (
            f"{self.tokens / self.rows:.0f} tokens a row; truncated "
            f"{self.truncated_queries:,} of {self.queries:,} queries and "
            f"{self.truncated_documents:,} of {self.documents:,} documents{sampled}"
        )


def measure_lengths(collator: EmbedCollator, source: int) -> Lengths:
    """Tokenise the texts that the first row epoch of a dataset uses, or those of a sample of its rows."""
    count = len(collator.sources[source].table)
    rows = list(range(count)) if count <= SAMPLE_ROWS else sorted(random.Random(0).sample(range(count), SAMPLE_ROWS))
    queries, documents = collator.texts(BatchIndices(source, rows, [0] * len(rows)))
    queries, documents = list(dict.fromkeys(queries)), list(dict.fromkeys(documents))
    query_tokens = collator.tokenizer(queries, collator.query_max_length)
    document_tokens = collator.tokenizer(documents, collator.document_limit(collator.sources[source]))
    return Lengths(
        rows=len(rows),
        total_rows=count,
        queries=len(queries),
        documents=len(documents),
        tokens=sum(map(len, query_tokens.ids)) + sum(map(len, document_tokens.ids)),
        truncated_queries=query_tokens.truncated,
        truncated_documents=document_tokens.truncated,
    )
