"""Search for the texts of which an earlier one means the same, in blocks, so that no n x n matrix is in memory.

Shapes: n texts, b texts of a block, D dimensions.
"""

import numpy as np
import torch
from torch import Tensor

from nestling.mining.retrieved import Scores
from nestling.mining.vectors import Vectors
from nestling.retrieval.metrics import Integers

BLOCK = 4096


def earlier_neighbours(vectors: Vectors, threshold: float, device: torch.device) -> tuple[Integers, Scores]:
    """Of each text the nearest earlier one that remains and means the same, and the cosine: [n] int64, [n] float32.

    A text remains, with -1 and NaN, if its cosine with every earlier one that remains is below the threshold; so of a
    chain in which only neighbours reach it, every second text remains.

    Args:
        vectors: n normalised embeddings, the texts that are to remain first.
        threshold: The lowest cosine, above 0, of texts that mean the same.
        device: Where cosines are computed, in float32.
    """
    neighbours, cosines = np.full(len(vectors), -1), np.full(len(vectors), np.nan, np.float32)
    for start in range(0, len(vectors), BLOCK):
        stop = min(start + BLOCK, len(vectors))
        block = vectors.span(start, stop, device)
        best, at = nearest_before(vectors, block, start, neighbours)
        found = best >= threshold
        neighbours[start:stop][found], cosines[start:stop][found] = at[found], best[found]
        compare_within(block, start, threshold, neighbours, cosines)
    return neighbours, cosines


def nearest_before(vectors: Vectors, block: Tensor, start: int, neighbours: Integers) -> tuple[Scores, Integers]:
    """The highest cosine of each text of a block with those before it that remain, and whose: [b] each."""
    best = torch.full((len(block),), -torch.inf, device=block.device)
    at = torch.zeros(len(block), dtype=torch.int64, device=block.device)
    for first in range(0, start, BLOCK):
        before = vectors.span(first, first + BLOCK, block.device)
        before[torch.from_numpy(neighbours[first : first + BLOCK] >= 0).to(block.device)] = 0
        top, where = (block @ before.T).max(dim=1)
        at = torch.where(top > best, first + where, at)
        best = torch.maximum(best, top)
    return best.cpu().numpy(), at.cpu().numpy()


def compare_within(block: Tensor, start: int, threshold: float, neighbours: Integers, cosines: Scores) -> None:
    """Fill in the texts of a block whose nearest is an earlier one of the block."""
    scores = (block @ block.T).tril(-1).cpu().numpy()  # [b, b]
    for row in np.flatnonzero((scores >= threshold).any(axis=1)).tolist():
        remaining = np.where(neighbours[start : start + row] < 0, scores[row, :row], 0)
        at = int(remaining.argmax())
        if remaining[at] >= threshold and not remaining[at] <= cosines[start + row]:  # NaN where none was found
            neighbours[start + row], cosines[start + row] = start + at, remaining[at]
