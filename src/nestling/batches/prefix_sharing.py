"""Prefix sharing: the prompts of a query are packed without padding, and the tokens that they all begin with run once.

A packed chunk is a row of segments. A segment is either the prefix that the prompts of a query share, which attends to
itself, or the rest of one prompt (its suffix), which attends to that prefix and to itself. Attention is causal.

Shapes: n prompts, S segments, T positions (tokens of all segments), K keys (the positions that each segment attends to,
concatenated over segments).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

# Token ids of the prompts of one query, or of some of them.
PromptGroup = Sequence[list[int]]

# Keys of a shared prefix are copied for each of its prompts: a prefix that saves fewer positions is not worth it.
MIN_SAVED_POSITIONS = 16


@dataclass(frozen=True)
class SharedPrefixChunk:
    """Whole groups of prompts in one packed row; a group holds the prompts of one query, one for each document.

    `cu_seqlens_q`, `cu_seqlens_k`, `max_seqlen_q` and `max_seqlen_k` are those of FlashAttention's variable-length
    functions. The maxima are Python numbers, since reading them from a tensor would wait for the GPU.

    Args:
        input_ids: [1, T] int64.
        position_ids: [1, T] int64; a suffix continues the positions of its prefix.
        last_positions: [n] int64, index into T of the last token of each prompt.
        lengths: [n] int64, tokens of each prompt, its prefix included.
        cu_seqlens_q: [S + 1] int32, cumulative lengths of the segments.
        key_positions: [K] int64, indices into T of the keys of each segment, concatenated.
        cu_seqlens_k: [S + 1] int32, cumulative numbers of keys of the segments.
        prefixes: For each segment the index of the segment that is its prefix; -1 for none.
        max_seqlen_q: Tokens of the longest segment.
        max_seqlen_k: Keys of the segment that has most.
        group_sizes: Number of prompts of each group.
    """

    input_ids: Tensor
    position_ids: Tensor
    last_positions: Tensor
    lengths: Tensor
    cu_seqlens_q: Tensor
    key_positions: Tensor
    cu_seqlens_k: Tensor
    prefixes: tuple[int, ...]
    max_seqlen_q: int
    max_seqlen_k: int
    group_sizes: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Positions that run through the model."""
        return self.input_ids.numel()

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment."""
        return self.max_seqlen_q

    def attention_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the model and `nestling.models.attention.varlen_attention`."""
        return {
            "position_ids": self.position_ids,
            "cu_seqlens_q": self.cu_seqlens_q,
            "max_seqlen_q": self.max_seqlen_q,
            "key_positions": self.key_positions,
            "cu_seqlens_k": self.cu_seqlens_k,
            "max_seqlen_k": self.max_seqlen_k,
            "prefixes": self.prefixes,
        }

    def to(self, device: torch.device) -> "SharedPrefixChunk":
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def prompts(self) -> list[list[list[int]]]:
        """Token ids of the prompts of each group."""
        segments = [segment.tolist() for segment in self.input_ids[0].split(self.cu_seqlens_q.diff().tolist())]
        shared = set(self.prefixes)
        prompts = iter(
            (segments[prefix] if prefix >= 0 else []) + segment
            for i, (prefix, segment) in enumerate(zip(self.prefixes, segments, strict=True))
            if i not in shared
        )
        return [list(islice(prompts, size)) for size in self.group_sizes]


def pack_groups(groups: Sequence[PromptGroup], *, share_prefix: bool) -> SharedPrefixChunk:
    """Pack the prompts of some groups; with `share_prefix` the tokens that a group's prompts begin with run once."""
    segments, prefixes = split_into_segments(groups, share_prefix=share_prefix)
    lengths = [len(segment) for segment in segments]
    prefix_lengths = [lengths[prefix] if prefix >= 0 else 0 for prefix in prefixes]
    cu_seqlens_q = cumulative_lengths(lengths)
    starts = cu_seqlens_q.tolist()
    keys = [
        torch.cat([torch.arange(starts[prefix], starts[prefix] + before), torch.arange(start, start + length)])
        for prefix, before, start, length in zip(prefixes, prefix_lengths, starts, lengths, strict=False)
    ]
    shared = set(prefixes)
    prompts = [i for i in range(len(segments)) if i not in shared]
    return SharedPrefixChunk(
        input_ids=torch.tensor([token for segment in segments for token in segment], dtype=torch.int64)[None],
        position_ids=torch.cat([torch.arange(b, b + n) for b, n in zip(prefix_lengths, lengths, strict=True)])[None],
        last_positions=torch.tensor([starts[i + 1] - 1 for i in prompts]),
        lengths=torch.tensor([prefix_lengths[i] + lengths[i] for i in prompts]),
        cu_seqlens_q=cu_seqlens_q,
        key_positions=torch.cat(keys),
        cu_seqlens_k=cumulative_lengths([len(each) for each in keys]),
        prefixes=tuple(prefixes),
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(len(each) for each in keys),
        group_sizes=tuple(len(group) for group in groups),
    )


def split_into_segments(groups: Sequence[PromptGroup], *, share_prefix: bool) -> tuple[list[list[int]], list[int]]:
    """Token ids of each segment, and for each segment the index of its prefix, -1 for none."""
    segments: list[list[int]] = []
    prefixes: list[int] = []
    for group in groups:
        shared = shared_prefix_length(group) if share_prefix else 0
        first = len(segments)
        if shared:
            segments.append(group[0][:shared])
            prefixes.append(-1)
        segments += [prompt[shared:] for prompt in group]
        prefixes += [first if shared else -1] * len(group)
    return segments, prefixes


def cumulative_lengths(lengths: Sequence[int]) -> Tensor:
    """[n + 1] int32: 0, then the cumulative sums of `lengths`, as FlashAttention's `cu_seqlens`."""
    return torch.tensor([0, *lengths]).cumsum(dim=0).to(torch.int32)


def shared_prefix_length(prompts: PromptGroup) -> int:
    """Tokens that all prompts begin with, short of the last token of the shortest; 0 where sharing saves too little."""
    if len(prompts) == 1:
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    # In lexicographic order, the first and the last prompt share exactly what all of them share.
    low, high = min(prompts), max(prompts)
    common = next((i for i in range(shortest) if low[i] != high[i]), shortest)
    return common if common * (len(prompts) - 1) >= MIN_SAVED_POSITIONS else 0


def group_positions(group: PromptGroup, *, share_prefix: bool) -> int:
    """Positions that a group takes in a packed chunk."""
    shared = shared_prefix_length(group) if share_prefix else 0
    return sum(map(len, group)) - shared * (len(group) - 1)


def chunk_groups(
    groups: Sequence[PromptGroup], max_positions: int, *, share_prefix: bool, padding_free: bool = True
) -> Iterator[Sequence[PromptGroup]]:
    """Consecutive groups for each chunk: as many as have at most `max_positions` positions together, at least one.

    Without `padding_free` each prompt counts with the padding to the longest prompt of its chunk.
    """
    if not padding_free:
        yield from chunk_padded_groups(groups, max_positions)
        return
    start, positions = 0, 0
    for i, group in enumerate(groups):
        size = group_positions(group, share_prefix=share_prefix)
        if i > start and positions + size > max_positions:
            yield groups[start:i]
            start, positions = i, 0
        positions += size
    if start < len(groups):
        yield groups[start:]


def chunk_padded_groups(groups: Sequence[PromptGroup], max_positions: int) -> Iterator[Sequence[PromptGroup]]:
    """As `chunk_groups`, for prompts that are padded to the longest of their chunk."""
    start, rows, longest = 0, 0, 0
    for i, group in enumerate(groups):
        rows, longest = rows + len(group), max(longest, *map(len, group))
        if i > start and rows * longest > max_positions:
            yield groups[start:i]
            start, rows, longest = i, len(group), max(map(len, group))
    if start < len(groups):
        yield groups[start:]


def split_group(group: PromptGroup, max_positions: int, *, share_prefix: bool) -> list[PromptGroup]:
    """Split a group whose prompts may go into different chunks: parts of at most `max_positions`, or of one prompt."""
    shared = shared_prefix_length(group) if share_prefix else 0
    starts, positions = [0], shared
    for i, prompt in enumerate(group):
        suffix = len(prompt) - shared
        if i > starts[-1] and positions + suffix > max_positions:
            starts.append(i)
            positions = shared
        positions += suffix
    return [group[start:end] for start, end in pairwise([*starts, len(group)])]
