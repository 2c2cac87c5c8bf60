"""Texts that are the same to the model, with equal tokens after truncation, are encoded and ranked as one.

Each process encodes such a text once, and copies that several processes encoded count once. Equal documents therefore
get exactly equal scores, instead of being ordered by rounding errors that depend on the batch.
"""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

from nestling.models.encoding import TokenIds
from nestling.retrieval.metrics import Integers


class SeenTexts:
    """The hashes of the texts that this process has read so far, to tell new texts from repeated ones."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._hashes = array("q")

    def select_new(self, ids: TokenIds) -> TokenIds:
        """Add texts, given as token ids, and return those that were not among the texts before them."""
        return [each for each in ids if self._add(each)]

    @property
    def hashes(self) -> Integers:
        """[n] int64: `token_hash` of every text so far, repeated ones included."""
        return np.array(self._hashes, dtype=np.int64)

    def _add(self, ids: list[int]) -> bool:
        value = token_hash(ids)
        self._hashes.append(value)
        count = len(self._known)
        self._known.add(value)
        return len(self._known) > count


def token_hash(ids: list[int]) -> int:
    """A signed 64-bit hash of token ids, the same in every process."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True)
class DistinctTexts:
    """Which of n texts are the same, in terms of the e encoded texts of all processes, those of rank 0 first.

    Attributes:
        encoded_index: [n] int64: for each text the index of the encoded text that represents it.
        copies: [e] int64: how many texts each encoded text represents; 0 if an earlier rank encoded the same text.
        bounds: [W + 1] int64: rank r encoded the texts bounds[r] to bounds[r + 1].
    """

    encoded_index: Integers
    copies: Integers
    bounds: Integers


def find_distinct(hashes: Integers, world: int) -> DistinctTexts:
    """Find equal texts by the hashes of all of them, [n] int64; rank r read (`SeenTexts`) texts r, r + world, ..."""
    encoded = [rank + world * first_occurrences(hashes[rank::world]) for rank in range(world)]
    _, distinct, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    # For each distinct text, the first encoded one that is equal to it.
    _, representatives = np.unique(distinct[np.concatenate(encoded)], return_index=True)
    bounds = np.cumsum([0, *map(len, encoded)])
    copies = np.zeros(bounds[-1], dtype=np.int64)
    copies[representatives] = counts
    return DistinctTexts(representatives[distinct], copies, bounds)


def first_occurrences(values: Integers) -> Integers:
    """Indices at which each value occurs first, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])
