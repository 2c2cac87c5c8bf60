"""Ragged lists in flat arrays against lists of lists."""

import numpy as np

from nestling.mining.lists import Lists, expand, positions_in_lists


def random_lists(rng: np.random.Generator, count: int, values: int) -> list[list[int]]:
    return [rng.choice(values, size=rng.integers(0, 6), replace=False).tolist() for _ in range(count)]


def test_equal_to_lists_of_lists() -> None:
    rng = np.random.default_rng(0)
    parts = random_lists(rng, 40, 12)
    lists = Lists.of([np.array(part, dtype=np.int64) for part in parts])
    assert [lists[i].tolist() for i in range(len(lists))] == parts
    assert lists.counts.tolist() == [len(part) for part in parts]
    owners, values = rng.integers(0, 40, 500), rng.integers(0, 14, 500)
    pairs = list(zip(owners.tolist(), values.tolist(), strict=True))
    assert lists.holds(owners, values).tolist() == [value in parts[owner] for owner, value in pairs]
    indices = lists.find(owners, values)
    for (owner, value), at in zip(pairs, indices.tolist(), strict=True):
        assert (at == -1) == (value not in parts[owner])
        assert at == -1 or (lists.owners[at], lists.values[at]) == (owner, value)
    which, others = expand(owners, lists)
    assert [others[which == i].tolist() for i in range(500)] == [parts[owner] for owner, _ in pairs]
    again = Lists.grouped(owners, values, 41)
    assert [again[i].tolist() for i in range(41)] == [[v for o, v in pairs if o == i] for i in range(41)]
    assert positions_in_lists(lists.owners, 40).tolist() == [i for part in parts for i in range(len(part))]


def test_empty_lists() -> None:
    empty = Lists.of([np.zeros(0, np.int64)] * 3)
    assert (len(empty), empty.counts.tolist()) == (3, [0, 0, 0])
    assert empty.find(np.array([0, 2]), np.array([5, 0])).tolist() == [-1, -1]
    assert [part.tolist() for part in expand(np.array([0, 1]), empty)] == [[], []]
