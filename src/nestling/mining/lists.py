"""Ragged lists of integers in two flat arrays: a list for each of many queries, without a Python object for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.metrics import Integers

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lists:
    """Q lists of different lengths, with n values in total.

    The owner of a value is the index of the list that it belongs to.

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
        """`count` lists from values and their owners, [n] each; the values of a list keep their order."""
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
        """[n] int64, ascending: the index of the list that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    def find(self, owners: Integers, values: Integers) -> Integers:
        """[m] int64: the index in `self.values` at which list owners[i] holds values[i]; -1 where it does not."""
        if not len(self.values):
            return np.full(len(values), -1)
        span = 1 + max(int(each.max(initial=0)) for each in (self.values, values))
        keys, wanted = self.owners * span + self.values, owners * span + values
        order = np.argsort(keys, kind="stable")
        at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
        return np.where(keys[at] == wanted, at, -1)

    def holds(self, owners: Integers, values: Integers) -> Mask:
        """[m] bool: whether list owners[i] holds values[i]; both must be 0 or more."""
        return self.find(owners, values) >= 0


def offsets_of(owners: Integers, count: int) -> Integers:
    """[count + 1] int64: the offsets of `count` lists whose values are sorted by owner."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64)


def positions_in_lists(owners: Integers, count: int) -> Integers:
    """[n] int64, from 0: the index of each value within its list; `owners` must ascend."""
    return np.arange(len(owners)) - offsets_of(owners, count)[owners]


def expand(owners: Integers, lists: Lists) -> tuple[Integers, Integers]:
    """All pairs of an index i and a value of list owners[i], as two arrays; i ascends."""
    counts = lists.counts[owners]
    which = np.repeat(np.arange(len(owners)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, lists.values[lists.offsets[owners[which]] + within]
