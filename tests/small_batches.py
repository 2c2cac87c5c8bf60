"""Random global batches for tests of losses, with all that real ones have: unequal numbers of negatives, several
positives, positives shared by queries, repeated texts, and known positives that are not in the batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.losses.guide import Guide
from nestling.losses.negatives import BatchStructure


@dataclass(frozen=True)
class Batch:
    queries: Tensor
    documents: Tensor
    structure: BatchStructure


def random_batch(
    seed: int, *, size: int = 7, dim: int = 12, dtype: torch.dtype = torch.float64, texts: int = 12
) -> Batch:
    """Queries and documents with texts out of `texts`, of which many are equal if these are few.

    Equal texts have equal embeddings.
    """
    random = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    query_text = torch.randint(0, texts, (size,), generator=random)
    known = torch.full((texts, 4), -1)
    for text in range(texts):
        count = integer(1, 4)
        known[text, :count] = 1000 + torch.randperm(texts, generator=random)[:count]
    owner, is_negative, document_text = [], [], []
    for i in range(size):
        positives = [int(each) for each in known[query_text[i]] if each >= 0][: integer(1, 4)]
        negatives = [1000 + integer(0, texts) for _ in range(integer(0, 4))]
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


def random_guide(batch: Batch, margin: float, relative: bool) -> Guide:
    """A guide whose embeddings have nothing to do with those of the batch."""
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(len(each), 3, generator=random, dtype=each.dtype) for each in (batch.queries, batch.documents)]
    return Guide(*(F.normalize(each + 0.5, dim=1) for each in made), margin=margin, relative=relative)


def tuples(size: int, negatives: int) -> BatchStructure:
    """Rows with one positive and equally many negatives, all texts different; the positives are the first documents."""
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
