"""Random global batches for the tests of losses, with everything that real ones hold: ragged negatives, several
positives, positives shared by queries, repeated texts, and ids that no document of the batch has."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.losses.negatives import BatchStructure


@dataclass(frozen=True)
class Batch:
    queries: Tensor
    documents: Tensor
    structure: BatchStructure


def random_batch(
    seed: int, *, size: int = 7, dim: int = 12, dtype: torch.dtype = torch.float64, texts: int = 12
) -> Batch:
    """Queries and documents take their texts among few, so that many are equal; equal texts have equal embeddings.

    With `texts` far above the size of the batch hardly any are equal.
    """
    random = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    query_text = torch.randint(0, texts, (size,), generator=random)
    known = torch.full((texts, 4), -1)
    for text in range(texts):
        count = whole(1, 4)
        known[text, :count] = 1000 + torch.randperm(texts, generator=random)[:count]
    owner, is_negative, document_text = [], [], []
    for i in range(size):
        positives = [int(each) for each in known[query_text[i]] if each >= 0][: whole(1, 4)]
        negatives = [1000 + whole(0, texts) for _ in range(whole(0, 4))]
        owner += [i] * (len(positives) + len(negatives))
        is_negative += [False] * len(positives) + [True] * len(negatives)
        document_text += positives + negatives
    rows = torch.tensor([i for i, negative in enumerate(is_negative) if not negative])
    query = torch.tensor(owner)[rows]
    directions = torch.randn(2, texts, dim, generator=random, dtype=torch.float64)
    directions[1] += 0.7 * directions[0]  # so that positives and negatives alike are not at right angles
    lengths = torch.rand(texts, 1, generator=random, dtype=torch.float64) * 3 + 0.1
    return Batch(
        queries=(directions[0] * lengths)[query_text].to(dtype).requires_grad_(),
        documents=directions[1][torch.tensor(document_text) - 1000].to(dtype).requires_grad_(),
        structure=BatchStructure(
            query=query,
            positive=rows,
            weight=torch.rand(len(rows), generator=random),
            owner=torch.tensor(owner),
            is_negative=torch.tensor(is_negative),
            query_text=query_text,
            document_text=torch.tensor(document_text),
            known_positives=known[query_text],
        ),
    )


def tuples(size: int, negatives: int) -> BatchStructure:
    """Rows with one positive and equally many negatives, all texts different; documents stand column by column."""
    rows = torch.arange(size)
    columns = 1 + negatives
    return BatchStructure(
        query=rows,
        positive=rows,
        weight=torch.full((size,), 1 / size),
        owner=rows.repeat(columns),
        is_negative=torch.arange(size * columns) >= size,
        query_text=rows,
        document_text=torch.arange(size * columns),
        known_positives=rows.unsqueeze(1),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()
