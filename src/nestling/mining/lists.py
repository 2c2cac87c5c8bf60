"""Lists of whole numbers of uneven length, in two arrays: what belongs to each of many queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.metrics import Integers

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lists:
    """Q lists of n values together.

    Args:
        offsets: [Q + 1] int64; list i is values[offsets[i]:offsets[i + 1]].
        values: [n] int64.
    """

    offsets: Integers
    values: Integers

    @classmethod
    def of(cls, parts: Sequence[Integers]) -> "Lists":
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return cls(offsets, np.concatenate([np.zeros(0, np.int64), *parts]))

    @classmethod
    def grouped(cls, owners: Integers, values: Integers, count: int) -> "Lists":
        """From values and the list that each belongs to, [n] each; within a list they keep their order."""
        order = np.argsort(owners, kind="stable")
        return cls(offsets_of(owners, count), values[order])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Integers:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def counts(self) -> Integers:
        """[Q] int64, the length of each list."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Integers:
        """[n] int64, which list each value belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    def find(self, owners: Integers, values: Integers) -> Integers:
        """[m] int64: where values[i] stands in list owners[i], as a place among all n; -1 where it does not."""
        if not len(self.values):
            return np.full(len(values), -1)
        span = 1 + max(int(each.max(initial=0)) for each in (self.values, values))
        keys, wanted = self.owners * span + self.values, owners * span + values
        order = np.argsort(keys, kind="stable")
        at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
        return np.where(keys[at] == wanted, at, -1)

    def holds(self, owners: Integers, values: Integers) -> Mask:
        """[m] bool: whether list owners[i] holds values[i]; both are 0 or more."""
        return self.find(owners, values) >= 0


def offsets_of(owners: Integers, count: int) -> Integers:
    """[count + 1] int64: where each list begins when values are sorted by the list that they belong to."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64)


def places_in_lists(owners: Integers, count: int) -> Integers:
    """[n] int64, from 0: where each value stands in its list; `owners` ascends."""
    return np.arange(len(owners)) - offsets_of(owners, count)[owners]


def expand(owners: Integers, lists: Lists) -> tuple[Integers, Integers]:
    """Every pair of i and a value of list owners[i]: two arrays, i ascending."""
    counts = lists.counts[owners]
    which = np.repeat(np.arange(len(owners)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, lists.values[lists.offsets[owners[which]] + within]
