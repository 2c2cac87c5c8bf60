"""Texts that are the same to the model: equal tokens after truncation.

They are encoded once on a rank, and whatever the ranks encode twice counts once: they tie exactly, instead of being
ordered by rounding errors that depend on the batch.
"""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

from nestling.models.encoding import TokenIds
from nestling.retrieval.metrics import Integers


class Seen:
    """The texts of one rank as they come: which of them are new, and what identifies each."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._identities = array("q")

    def fresh(self, ids: TokenIds) -> TokenIds:
        """Those of some texts that no text before had the tokens of."""
        return [each for each in ids if self._is_new(each)]

    @property
    def identities(self) -> Integers:
        """[n] int64, of every text so far."""
        return np.array(self._identities, dtype=np.int64)

    def _is_new(self, ids: list[int]) -> bool:
        identity = token_identity(ids)
        self._identities.append(identity)
        known = len(self._known)
        self._known.add(identity)
        return len(self._known) > known


def token_identity(ids: list[int]) -> int:
    """A signed 64-bit hash of token ids, the same in every process."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True)
class Distinct:
    """Which of n texts are the same, in terms of the e that ranks encoded, those of rank 0 first.

    Attributes:
        which: [n] int64, for every text the encoded one that stands for it.
        copies: [e] int64, for how many texts each stands; 0 for what an earlier rank encoded too.
        bounds: [W + 1] int64; rank r encoded bounds[r] to bounds[r + 1].
    """

    which: Integers
    copies: Integers
    bounds: Integers


def find_distinct(identities: Integers, world: int) -> Distinct:
    """From the identities of all texts, [n] int64, of which rank r read every `world`-th from r on (`Seen`)."""
    encoded = [rank + world * first_of_each(identities[rank::world]) for rank in range(world)]
    _, kinds, counts = np.unique(identities, return_inverse=True, return_counts=True)
    _, stands = np.unique(kinds[np.concatenate(encoded)], return_index=True)  # for each kind, the first encoded
    bounds = np.cumsum([0, *map(len, encoded)])
    copies = np.zeros(bounds[-1], dtype=np.int64)
    copies[stands] = counts
    return Distinct(stands[kinds], copies, bounds)


def first_of_each(values: Integers) -> Integers:
    """Where each value occurs first, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])
