"""Prompts of one query, packed: what attends to what by brute force, and cutting by budgets."""

import random
from collections.abc import Sequence

import pytest
import torch

from nestling.batches.groups import (
    WORTH_SHARING,
    GroupChunk,
    common_beginning,
    cut_parts,
    join_groups,
    positions_of,
    running,
    split_group,
)

Group = list[list[int]]


def random_group(generator: random.Random) -> Group:
    """Prompts of few different tokens, so that some are equal and some are prefixes of others."""
    beginning = [generator.randrange(3) for _ in range(generator.choice([0, 0, 5, 30]))]
    lengths = [generator.choice([1, 2, 3, 20]) for _ in range(generator.randint(1, 6))]
    return [beginning + [generator.randrange(2) for _ in range(length)] for length in lengths]


def random_groups(seed: int) -> list[Group]:
    generator = random.Random(seed)
    return [random_group(generator) for _ in range(generator.randint(1, 7))]


def segments(chunk: GroupChunk) -> list[list[int]]:
    return [part.tolist() for part in chunk.input_ids[0].split(chunk.cu_seqlens.diff().tolist())]


def test_a_shared_beginning_runs_once() -> None:
    beginning = list(range(10, 26))
    chunk = join_groups([[[*beginning, 1, 2], [*beginning, 3]], [[7, 8]]], share=True)
    assert chunk.input_ids.tolist() == [[*beginning, 1, 2, 3, 7, 8]]
    assert chunk.position_ids.tolist() == [[*range(16), 16, 17, 16, 0, 1]]
    assert chunk.cu_seqlens.tolist() == [0, 16, 18, 19, 21]
    assert chunk.beginnings == (-1, 0, 0, -1)
    assert chunk.keys.tolist() == [*range(16), *range(18), *range(16), 18, 19, 20]
    assert chunk.key_cu_seqlens.tolist() == [0, 16, 34, 51, 53]
    assert chunk.ends.tolist() == [17, 18, 20]
    assert chunk.lengths.tolist() == [18, 17, 2]
    assert (chunk.longest, chunk.most_keys, chunk.positions) == (16, 18, 21)
    assert chunk.groups == (2, 1)


def test_types_are_those_that_the_attention_takes() -> None:
    chunk = join_groups(random_groups(0), share=True)
    for each in (chunk.input_ids, chunk.position_ids, chunk.ends, chunk.lengths, chunk.keys):
        assert each.dtype == torch.int64
    for each in (chunk.cu_seqlens, chunk.key_cu_seqlens):
        assert each.dtype == torch.int32
    moved = chunk.to(torch.device("meta"))
    assert moved.keys.device.type == moved.position_ids.device.type == "meta"
    assert (moved.beginnings, moved.groups, moved.longest) == (chunk.beginnings, chunk.groups, chunk.longest)
    assert set(chunk.attention_arguments()) == {
        "position_ids",
        "cu_seqlens",
        "longest",
        "keys",
        "key_cu_seqlens",
        "most_keys",
        "beginnings",
    }


@pytest.mark.parametrize("share", [False, True])
def test_every_token_sees_its_own_prompt_up_to_itself(share: bool) -> None:
    """From the cu_seqlens, keys and positions alone, what the last tokens attend to spells the prompts."""
    for seed in range(60):
        groups = random_groups(seed)
        chunk = join_groups(groups, share=share)
        prompts = [prompt for group in groups for prompt in group]
        parts, ids = segments(chunk), chunk.input_ids[0]
        keys = [each.tolist() for each in chunk.keys.split(chunk.key_cu_seqlens.diff().tolist())]
        assert len(keys) == len(parts) == len(chunk.beginnings)
        assert chunk.longest == max(map(len, parts))
        assert chunk.most_keys == max(map(len, keys))
        assert len(chunk.ends) == len(prompts)
        segment = torch.searchsorted(chunk.cu_seqlens, chunk.ends, right=True) - 1
        for prompt, end, length, own in zip(prompts, chunk.ends, chunk.lengths, segment.tolist(), strict=True):
            assert end == chunk.cu_seqlens[own + 1] - 1
            assert ids[keys[own]].tolist() == prompt
            assert length == len(prompt)
        for i, own in enumerate(keys):
            # As many queries as the segment has, the last of them aligned with the last key.
            places = range(int(chunk.cu_seqlens[i]), int(chunk.cu_seqlens[i + 1]))
            assert own[len(own) - len(places) :] == list(places)
            assert chunk.position_ids[0, places.start : places.stop].tolist() == list(
                range(len(own) - len(places), len(own))
            )


@pytest.mark.parametrize("share", [False, True])
def test_prompts_undo_the_packing(share: bool) -> None:
    for seed in range(60):
        groups = random_groups(seed)
        chunk = join_groups(groups, share=share)
        assert chunk.prompts() == groups
        assert chunk.positions == sum(positions_of(group, share=share) for group in groups)
        assert chunk.positions <= sum(len(prompt) for group in groups for prompt in group)


def test_nothing_is_shared_unless_asked() -> None:
    group = [[1] * 40, [1] * 50]
    chunk = join_groups([group], share=False)
    assert chunk.beginnings == (-1, -1)
    assert chunk.positions == 90
    assert join_groups([group], share=True).positions == 39 + 1 + 11


@pytest.mark.parametrize(
    ("prompts", "common"),
    [
        ([[1] * 40], 0),  # a single prompt shares with nobody
        ([[1] * 40, [1] * 40], 39),  # equal ones: the last token stays each prompt's own
        ([[1] * 40, [1] * 60, [1] * 50], 39),  # prefixes of each other
        ([[1] * 30 + [2], [1] * 30 + [3]], 30),
        ([[1] * 30 + [2], [1] * 30 + [3], [1] * 9 + [0] * 9], 9),
        ([[2] * 30, [3] * 30], 0),
        ([[1], [1] * 60], 0),  # the shorter one has but its last token
        ([[1] * WORTH_SHARING + [2], [1] * WORTH_SHARING + [3]], WORTH_SHARING),
        ([[1] * (WORTH_SHARING - 1) + [2], [1] * (WORTH_SHARING - 1) + [3]], 0),  # would save too little
        ([[1] * 8 + [2], [1] * 8 + [3], [1] * 8 + [4]], 8),  # what three save is enough again
    ],
)
def test_the_common_beginning(prompts: Group, common: int) -> None:
    for order in (prompts, prompts[::-1]):
        assert common_beginning(order) == common


def test_the_common_beginning_by_brute_force() -> None:
    for seed in range(300):
        group = random_group(random.Random(seed))
        shortest = min(map(len, group)) - 1
        common = max(n for n in range(shortest + 1) if all(each[:n] == group[0][:n] for each in group))
        assert common_beginning(group) == (common if common * (len(group) - 1) >= WORTH_SHARING else 0)


def test_running_sums() -> None:
    assert running([3, 0, 2]).tolist() == [0, 3, 3, 5]
    assert running([]).tolist() == [0]


def flat(parts: Sequence[Sequence[Group]]) -> list[Group]:
    return [group for part in parts for group in part]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 10, 40, 100, 10_000])
def test_cutting_loses_nothing_and_stays_within_the_budget(budget: int, share: bool) -> None:
    for seed in range(40):
        groups = random_groups(seed)
        sizes = [positions_of(group, share=share) for group in groups]
        parts = list(cut_parts(groups, budget, share=share))
        assert flat(parts) == groups
        taken = 0
        for part in parts:
            own = sizes[taken : taken + len(part)]
            assert own and (sum(own) <= budget or len(own) == 1)
            taken += len(part)
            # As many as fit.
            assert taken == len(groups) or sum(own) + sizes[taken] > budget
    assert list(cut_parts([], budget, share=share)) == []


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 10, 40, 100, 10_000])
def test_splitting_loses_nothing_and_stays_within_the_budget(budget: int, share: bool) -> None:
    for seed in range(120):
        group = random_group(random.Random(seed))
        parts = split_group(group, budget, share=share)
        assert [prompt for part in parts for prompt in part] == group
        for part in parts:
            # A part may have more in common than the whole group, or too little to share: sizes are by the group's.
            assert len(part) == 1 or positions_of(part, share=share) <= budget + WORTH_SHARING
            assert len(part) >= 1
        if positions_of(group, share=share) <= budget:
            assert parts == [group]


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_padded_prompts_count_their_padding(seed: int) -> None:
    groups, budget = random_groups(seed), 40
    parts = list(cut_parts(groups, budget, share=False, packed=False))
    assert [group for part in parts for group in part] == groups
    sizes = [(sum(map(len, part)), max(len(prompt) for group in part for prompt in group)) for part in parts]
    assert all(rows * longest <= budget or len(part) == 1 for (rows, longest), part in zip(sizes, parts, strict=True))
    for (rows, longest), following in zip(sizes[:-1], parts[1:], strict=True):
        first = following[0]
        assert (rows + len(first)) * max(longest, *map(len, first)) > budget
