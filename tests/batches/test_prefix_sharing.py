"""Prefix sharing: which tokens attend to which, checked by brute force, and splitting groups into chunks."""

import random
from collections.abc import Sequence

import pytest
import torch

from nestling.batches.prefix_sharing import (
    MIN_SAVED_POSITIONS,
    SharedPrefixChunk,
    chunk_groups,
    cumulative_lengths,
    group_positions,
    pack_groups,
    shared_prefix_length,
    split_group,
)

Group = list[list[int]]


def random_group(generator: random.Random) -> Group:
    """Prompts of few different tokens, so that some are equal and some are prefixes of others."""
    prefix = [generator.randrange(3) for _ in range(generator.choice([0, 0, 5, 30]))]
    lengths = [generator.choice([1, 2, 3, 20]) for _ in range(generator.randint(1, 6))]
    return [prefix + [generator.randrange(2) for _ in range(length)] for length in lengths]


def random_groups(seed: int) -> list[Group]:
    generator = random.Random(seed)
    return [random_group(generator) for _ in range(generator.randint(1, 7))]


def segments(chunk: SharedPrefixChunk) -> list[list[int]]:
    return [part.tolist() for part in chunk.input_ids[0].split(chunk.cu_seqlens_q.diff().tolist())]


def test_a_shared_prefix_runs_once() -> None:
    prefix = list(range(10, 26))
    chunk = pack_groups([[[*prefix, 1, 2], [*prefix, 3]], [[7, 8]]], share_prefix=True)
    assert chunk.input_ids.tolist() == [[*prefix, 1, 2, 3, 7, 8]]
    assert chunk.position_ids.tolist() == [[*range(16), 16, 17, 16, 0, 1]]
    assert chunk.cu_seqlens_q.tolist() == [0, 16, 18, 19, 21]
    assert chunk.prefixes == (-1, 0, 0, -1)
    assert chunk.key_positions.tolist() == [*range(16), *range(18), *range(16), 18, 19, 20]
    assert chunk.cu_seqlens_k.tolist() == [0, 16, 34, 51, 53]
    assert chunk.last_positions.tolist() == [17, 18, 20]
    assert chunk.lengths.tolist() == [18, 17, 2]
    assert (chunk.max_seqlen_q, chunk.max_seqlen_k, chunk.positions) == (16, 18, 21)
    assert chunk.group_sizes == (2, 1)


def test_dtypes_are_those_of_varlen_attention() -> None:
    chunk = pack_groups(random_groups(0), share_prefix=True)
    for each in (chunk.input_ids, chunk.position_ids, chunk.last_positions, chunk.lengths, chunk.key_positions):
        assert each.dtype == torch.int64
    for each in (chunk.cu_seqlens_q, chunk.cu_seqlens_k):
        assert each.dtype == torch.int32
    moved = chunk.to(torch.device("meta"))
    assert moved.key_positions.device.type == moved.position_ids.device.type == "meta"
    assert (moved.prefixes, moved.group_sizes, moved.max_seqlen_q) == (
        chunk.prefixes,
        chunk.group_sizes,
        chunk.max_seqlen_q,
    )
    assert set(chunk.attention_arguments()) == {
        "position_ids",
        "cu_seqlens_q",
        "max_seqlen_q",
        "key_positions",
        "cu_seqlens_k",
        "max_seqlen_k",
        "prefixes",
    }


@pytest.mark.parametrize("share_prefix", [False, True])
def test_every_token_sees_its_own_prompt_up_to_itself(share_prefix: bool) -> None:
    """The keys of the segment that holds the last token of a prompt are the tokens of that prompt, in order."""
    for seed in range(60):
        groups = random_groups(seed)
        chunk = pack_groups(groups, share_prefix=share_prefix)
        prompts = [prompt for group in groups for prompt in group]
        parts, ids = segments(chunk), chunk.input_ids[0]
        keys = [each.tolist() for each in chunk.key_positions.split(chunk.cu_seqlens_k.diff().tolist())]
        assert len(keys) == len(parts) == len(chunk.prefixes)
        assert chunk.max_seqlen_q == max(map(len, parts))
        assert chunk.max_seqlen_k == max(map(len, keys))
        assert len(chunk.last_positions) == len(prompts)
        segment = torch.searchsorted(chunk.cu_seqlens_q, chunk.last_positions, right=True) - 1
        for prompt, end, length, own in zip(
            prompts, chunk.last_positions, chunk.lengths, segment.tolist(), strict=True
        ):
            assert end == chunk.cu_seqlens_q[own + 1] - 1
            assert ids[keys[own]].tolist() == prompt
            assert length == len(prompt)
        for i, own in enumerate(keys):
            # As many queries as the segment has, the last of them aligned with the last key.
            places = range(int(chunk.cu_seqlens_q[i]), int(chunk.cu_seqlens_q[i + 1]))
            assert own[len(own) - len(places) :] == list(places)
            assert chunk.position_ids[0, places.start : places.stop].tolist() == list(
                range(len(own) - len(places), len(own))
            )


@pytest.mark.parametrize("share_prefix", [False, True])
def test_prompts_undo_the_packing(share_prefix: bool) -> None:
    for seed in range(60):
        groups = random_groups(seed)
        chunk = pack_groups(groups, share_prefix=share_prefix)
        assert chunk.prompts() == groups
        assert chunk.positions == sum(group_positions(group, share_prefix=share_prefix) for group in groups)
        assert chunk.positions <= sum(len(prompt) for group in groups for prompt in group)


def test_nothing_is_shared_unless_asked() -> None:
    group = [[1] * 40, [1] * 50]
    chunk = pack_groups([group], share_prefix=False)
    assert chunk.prefixes == (-1, -1)
    assert chunk.positions == 90
    assert pack_groups([group], share_prefix=True).positions == 39 + 1 + 11


@pytest.mark.parametrize(
    ("prompts", "common"),
    [
        ([[1] * 40], 0),  # a single prompt shares nothing
        ([[1] * 40, [1] * 40], 39),  # equal ones: the last token stays each prompt's own
        ([[1] * 40, [1] * 60, [1] * 50], 39),  # prefixes of each other
        ([[1] * 30 + [2], [1] * 30 + [3]], 30),
        ([[1] * 30 + [2], [1] * 30 + [3], [1] * 9 + [0] * 9], 9),
        ([[2] * 30, [3] * 30], 0),
        ([[1], [1] * 60], 0),  # the shorter one has but its last token
        ([[1] * MIN_SAVED_POSITIONS + [2], [1] * MIN_SAVED_POSITIONS + [3]], MIN_SAVED_POSITIONS),
        ([[1] * (MIN_SAVED_POSITIONS - 1) + [2], [1] * (MIN_SAVED_POSITIONS - 1) + [3]], 0),  # would save too little
        ([[1] * 8 + [2], [1] * 8 + [3], [1] * 8 + [4]], 8),  # what three save is enough again
    ],
)
def test_shared_prefix_length(prompts: Group, common: int) -> None:
    for order in (prompts, prompts[::-1]):
        assert shared_prefix_length(order) == common


def test_shared_prefix_length_by_brute_force() -> None:
    for seed in range(300):
        group = random_group(random.Random(seed))
        shortest = min(map(len, group)) - 1
        common = max(n for n in range(shortest + 1) if all(each[:n] == group[0][:n] for each in group))
        assert shared_prefix_length(group) == (common if common * (len(group) - 1) >= MIN_SAVED_POSITIONS else 0)


def test_cumulative_lengths() -> None:
    assert cumulative_lengths([3, 0, 2]).tolist() == [0, 3, 3, 5]
    assert cumulative_lengths([]).tolist() == [0]


def flat(parts: Sequence[Sequence[Group]]) -> list[Group]:
    return [group for part in parts for group in part]


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("max_positions", [1, 10, 40, 100, 10_000])
def test_chunks_hold_every_group_and_at_most_max_positions(max_positions: int, share_prefix: bool) -> None:
    for seed in range(40):
        groups = random_groups(seed)
        sizes = [group_positions(group, share_prefix=share_prefix) for group in groups]
        parts = list(chunk_groups(groups, max_positions, share_prefix=share_prefix))
        assert flat(parts) == groups
        taken = 0
        for part in parts:
            own = sizes[taken : taken + len(part)]
            assert own and (sum(own) <= max_positions or len(own) == 1)
            taken += len(part)
            # As many as fit.
            assert taken == len(groups) or sum(own) + sizes[taken] > max_positions
    assert list(chunk_groups([], max_positions, share_prefix=share_prefix)) == []


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("max_positions", [1, 10, 40, 100, 10_000])
def test_parts_of_a_group_hold_every_prompt_and_at_most_max_positions(max_positions: int, share_prefix: bool) -> None:
    for seed in range(120):
        group = random_group(random.Random(seed))
        parts = split_group(group, max_positions, share_prefix=share_prefix)
        assert [prompt for part in parts for prompt in part] == group
        for part in parts:
            # A part is split by the shared prefix of its group; its own may be longer, or too short to be shared.
            assert (
                len(part) == 1
                or group_positions(part, share_prefix=share_prefix) <= max_positions + MIN_SAVED_POSITIONS
            )
            assert len(part) >= 1
        if group_positions(group, share_prefix=share_prefix) <= max_positions:
            assert parts == [group]


@pytest.mark.parametrize("seed", range(20))
def test_positions_of_padded_chunks_include_the_padding(seed: int) -> None:
    groups, max_positions = random_groups(seed), 40
    parts = list(chunk_groups(groups, max_positions, share_prefix=False, padding_free=False))
    assert [group for part in parts for group in part] == groups
    sizes = [(sum(map(len, part)), max(len(prompt) for group in part for prompt in group)) for part in parts]
    assert all(
        rows * longest <= max_positions or len(part) == 1 for (rows, longest), part in zip(sizes, parts, strict=True)
    )
    for (rows, longest), following in zip(sizes[:-1], parts[1:], strict=True):
        first = following[0]
        assert (rows + len(first)) * max(longest, *map(len, first)) > max_positions
