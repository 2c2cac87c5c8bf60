"""Prompts of a reranker, packed without padding; those of one query run the tokens that all begin with once.

Shapes: n prompts, S segments, T positions, K keys. A segment is the common beginning of a query's prompts, which
attends to itself, or the rest of a prompt, which attends to that beginning and to itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

# Token ids of the prompts of one query, or of some of them.
Part = Sequence[list[int]]

# A beginning that saves fewer positions than this is not worth the keys that it has to be copied into.
WORTH_SHARING = 16


@dataclass(frozen=True)
class GroupChunk:
    """Whole groups: a query's prompts, one for each of its documents.

    Args:
        input_ids: [1, T] int64.
        position_ids: [1, T] int64, which go on behind the common beginning.
        ends: [n] int64, where the last token of each prompt stands in T.
        lengths: [n] int64, tokens of each prompt, with its beginning.
        cu_seqlens: [S + 1] int32, where each segment begins, and the end.
        keys: [K] int64, what the segments attend to, one after the other.
        key_cu_seqlens: [S + 1] int32, where the keys of each begin, and the end.
        beginnings: For each segment which one it goes on from; -1 for none.
        longest: Tokens of the longest segment; kept, as are the next, since asking a GPU would wait for it.
        most_keys: Keys of the segment that has most.
        groups: How many prompts each group has.
    """

    input_ids: Tensor
    position_ids: Tensor
    ends: Tensor
    lengths: Tensor
    cu_seqlens: Tensor
    keys: Tensor
    key_cu_seqlens: Tensor
    beginnings: tuple[int, ...]
    longest: int
    most_keys: int
    groups: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Positions that run through the model."""
        return self.input_ids.numel()

    def attention_arguments(self) -> dict[str, Any]:
        """What `nestling.models.attention.varlen_attention` and the model have to know."""
        return {
            "position_ids": self.position_ids,
            "cu_seqlens": self.cu_seqlens,
            "longest": self.longest,
            "keys": self.keys,
            "key_cu_seqlens": self.key_cu_seqlens,
            "most_keys": self.most_keys,
            "beginnings": self.beginnings,
        }

    def to(self, device: torch.device) -> "GroupChunk":
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def prompts(self) -> list[list[list[int]]]:
        """Token ids of the prompts of each group."""
        parts = [part.tolist() for part in self.input_ids[0].split(self.cu_seqlens.diff().tolist())]
        shared = set(self.beginnings)
        whole = iter(
            (parts[before] if before >= 0 else []) + part
            for i, (before, part) in enumerate(zip(self.beginnings, parts, strict=True))
            if i not in shared
        )
        return [list(islice(whole, count)) for count in self.groups]


def join_groups(groups: Sequence[Part], *, share: bool) -> GroupChunk:
    """Pack the prompts of some groups; with `share` each group runs its common beginning once."""
    parts: list[list[int]] = []
    beginnings: list[int] = []
    for group in groups:
        common = common_beginning(group) if share else 0
        first = len(parts)
        if common:
            parts.append(group[0][:common])
            beginnings.append(-1)
        parts += [prompt[common:] for prompt in group]
        beginnings += [first if common else -1] * len(group)
    lengths = [len(part) for part in parts]
    before = [lengths[each] if each >= 0 else 0 for each in beginnings]
    cu_seqlens = running(lengths)
    starts = cu_seqlens.tolist()
    keys = [
        torch.cat([torch.arange(starts[each], starts[each] + own_before), torch.arange(start, start + length)])
        for each, own_before, start, length in zip(beginnings, before, starts, lengths, strict=False)
    ]
    shared = set(beginnings)
    prompts = [i for i in range(len(parts)) if i not in shared]
    return GroupChunk(
        input_ids=torch.tensor([token for part in parts for token in part], dtype=torch.int64)[None],
        position_ids=torch.cat([torch.arange(b, b + n) for b, n in zip(before, lengths, strict=True)])[None],
        ends=torch.tensor([starts[i + 1] - 1 for i in prompts]),
        lengths=torch.tensor([before[i] + lengths[i] for i in prompts]),
        cu_seqlens=cu_seqlens,
        keys=torch.cat(keys),
        key_cu_seqlens=running([len(each) for each in keys]),
        beginnings=tuple(beginnings),
        longest=max(lengths),
        most_keys=max(len(each) for each in keys),
        groups=tuple(len(group) for group in groups),
    )


def running(lengths: Sequence[int]) -> Tensor:
    """[n + 1] int32: 0, and the sums of the first lengths."""
    return torch.tensor([0, *lengths]).cumsum(dim=0).to(torch.int32)


def common_beginning(prompts: Part) -> int:
    """Tokens that all prompts begin with, but for the last of the shortest; 0 where sharing them would save little."""
    if len(prompts) == 1:
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    # Whatever all have in common, the smallest and the greatest have.
    low, high = min(prompts), max(prompts)
    common = next((i for i in range(shortest) if low[i] != high[i]), shortest)
    return common if common * (len(prompts) - 1) >= WORTH_SHARING else 0


def positions_of(group: Part, *, share: bool) -> int:
    """Positions that a group takes."""
    common = common_beginning(group) if share else 0
    return sum(map(len, group)) - common * (len(group) - 1)


def cut_parts(groups: Sequence[Part], budget: int, *, share: bool, packed: bool = True) -> Iterator[Sequence[Part]]:
    """Groups in order, together as many as stay within `budget` positions, padding included, at least one."""
    if not packed:
        yield from cut_padded(groups, budget)
        return
    start, spent = 0, 0
    for i, group in enumerate(groups):
        size = positions_of(group, share=share)
        if i > start and spent + size > budget:
            yield groups[start:i]
            start, spent = i, 0
        spent += size
    if start < len(groups):
        yield groups[start:]


def cut_padded(groups: Sequence[Part], budget: int) -> Iterator[Sequence[Part]]:
    """As `cut_parts`, of prompts that are padded to the longest of their chunk."""
    start, rows, longest = 0, 0, 0
    for i, group in enumerate(groups):
        rows, longest = rows + len(group), max(longest, *map(len, group))
        if i > start and rows * longest > budget:
            yield groups[start:i]
            start, rows, longest = i, len(group), max(map(len, group))
    if start < len(groups):
        yield groups[start:]


def split_group(group: Part, budget: int, *, share: bool) -> list[Part]:
    """A group whose prompts need not stay together, in parts that stay within `budget` positions, at least one each."""
    common = common_beginning(group) if share else 0
    starts, spent = [0], common
    for i, prompt in enumerate(group):
        own = len(prompt) - common
        if i > starts[-1] and spent + own > budget:
            starts.append(i)
            spent = common
        spent += own
    return [group[start:end] for start, end in pairwise([*starts, len(group)])]
