"""What ranks of a sharded model agree on before a step: every forward is a collective there."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from nestling.batches.packing import AnyChunk, Chunk


def agree_on_chunks(chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
    """Equally many chunks on all ranks, and how many of the last ones keep their graphs on every rank; one collective.

    Ranks with fewer chunks get chunks of a single token at the end.
    """
    device = chunks[0].input_ids.device
    ends = torch.tensor([len(chunks), len(chunks) - kept], device=device)  # how many, and the first that is kept
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    count, first = (int(each) for each in ends.tolist())
    return [*chunks, *[one_token(chunks[0])] * (count - len(chunks))], count - first


def one_token(chunk: AnyChunk) -> Chunk:
    """The least that a model can run: a text of a single token."""
    return Chunk(chunk.input_ids[:1, :1], torch.ones_like(chunk.lengths[:1]), padded=False)
