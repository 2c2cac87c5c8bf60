"""Embeddings of many texts as memory-mapped float16 shards.

Shapes: n texts, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nestling.retrieval.metrics import Integers

Float16Array = NDArray[np.float16]


@dataclass(frozen=True)
class Vectors:
    """Normalised embeddings of n texts, in shards.

    Attributes:
        shards: [at most `shard_size`, D] float16 each, memory-mapped.
        shard_size: Texts of every shard but the last, which may have fewer.
    """

    shards: list[Float16Array]
    shard_size: int

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def span(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Embeddings `start` to `stop`, [stop - start, D] float32 on the device."""
        parts = [
            shard[max(start - first, 0) : max(stop - first, 0)]
            for first, shard in zip(range(0, len(self), self.shard_size), self.shards, strict=True)
            if first < stop and start < first + len(shard)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(whole).to(device).float()

    def take(self, positions: Integers) -> Tensor:
        """Embeddings at m positions, [m, D] float32 on the CPU."""
        taken = np.empty((len(positions), self.shards[0].shape[1]), np.float16)
        shard_of = positions // self.shard_size
        for shard in np.unique(shard_of).tolist():
            at = np.flatnonzero(shard_of == shard)
            taken[at] = self.shards[shard][positions[at] - shard * self.shard_size]
        return torch.from_numpy(taken).float()
