"""One rank's part of a reranker's batch: prompts in chunks, and the labels of each chunk.

Shapes: n prompts of a chunk, Q queries of it, G documents of the query that has most of them there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.batches.packing import AnyChunk
from nestling.batches.prefix_sharing import PromptGroup, SharedPrefixChunk, split_group


@dataclass(frozen=True)
class ChunkLabels:
    """Labels of the prompts of a chunk, in the order of its prompts.

    Args:
        targets: [n] float32 relevance from 0 to 1.
        teacher: [n] float32 scores of a teacher; None if any record of the chunk has none.
        group: [Q, G] int64, indices of the prompts of each query, padded with -1.
    """

    targets: Tensor
    teacher: Tensor | None
    group: Tensor

    def lists(self) -> tuple[list[float], list[float] | None]:
        """Targets and teacher scores."""
        return self.targets.tolist(), None if self.teacher is None else self.teacher.tolist()

    def to(self, device: torch.device) -> "ChunkLabels":
        teacher = None if self.teacher is None else self.teacher.to(device)
        return ChunkLabels(self.targets.to(device), teacher, self.group.to(device))


@dataclass(frozen=True)
class LabelledGroup:
    """The prompts of one query, or of some of its documents, with their labels.

    Args:
        prompts: Token ids.
        targets: Relevance from 0 to 1, one for each prompt.
        teacher: Scores of a teacher, one for each prompt, or None.
    """

    prompts: PromptGroup
    targets: list[float]
    teacher: list[float] | None

    def split(self, max_positions: int, *, share_prefix: bool) -> "Iterator[LabelledGroup]":
        """Parts of at most `max_positions` positions, for losses that do not compare the documents of a query."""
        start = 0
        for prompts in split_group(self.prompts, max_positions, share_prefix=share_prefix):
            part = slice(start, start + len(prompts))
            yield LabelledGroup(prompts, self.targets[part], None if self.teacher is None else self.teacher[part])
            start = part.stop


@dataclass(frozen=True)
class RerankBatch:
    """The prompts of this rank of a global batch, in chunks, with their labels.

    Args:
        chunks: The prompts; groups of more positions come first.
        labels: One for each chunk.
        queries: Number of queries in the global batch.
        pairs: Number of prompts in the global batch.
        tokens: Tokens of this rank's prompts.
        truncated: Queries and documents of this rank that were truncated.
    """

    chunks: list[AnyChunk]
    labels: list[ChunkLabels]
    queries: int
    pairs: int
    tokens: int
    truncated: int

    @property
    def positions(self) -> int:
        """Positions of this rank that run through the model; a shared prefix counts once."""
        return sum(chunk.positions for chunk in self.chunks)

    def groups(self) -> list[LabelledGroup]:
        """The labelled prompts again, a group for each query of each chunk."""
        return [
            LabelledGroup(
                [prompts[i] for i in rows],
                [targets[i] for i in rows],
                None if teacher is None else [teacher[i] for i in rows],
            )
            for chunk, labels in zip(self.chunks, self.labels, strict=True)
            for prompts, targets, teacher in [(chunk_prompts(chunk), *labels.lists())]
            for rows in ([i for i in row if i >= 0] for row in labels.group.tolist())
        ]

    def to(self, device: torch.device) -> "RerankBatch":
        moved = [chunk.to(device) for chunk in self.chunks]
        return replace(self, chunks=moved, labels=[each.to(device) for each in self.labels])


def chunk_prompts(chunk: AnyChunk) -> list[list[int]]:
    """Token ids of a chunk's prompts, in order."""
    if isinstance(chunk, SharedPrefixChunk):
        return [prompt for group in chunk.prompts() for prompt in group]
    rows = zip(chunk.input_ids.tolist(), chunk.lengths.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def join_labels(groups: Sequence[LabelledGroup]) -> ChunkLabels:
    """Labels of a chunk that holds these groups; with teacher scores only if all groups have them."""
    sizes = [len(each.prompts) for each in groups]
    group = torch.full((len(groups), max(sizes)), -1)
    start = 0
    for i, size in enumerate(sizes):
        group[i, :size] = torch.arange(start, start + size)
        start += size
    scores = [each.teacher for each in groups]
    teacher = None if None in scores else torch.tensor([score for own in scores for score in own or ()])
    return ChunkLabels(torch.tensor([target for each in groups for target in each.targets]), teacher, group)
