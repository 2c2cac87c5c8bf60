"""Equal numbers of chunks on all ranks of a sharded model, whose forward passes are collectives."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from nestling.batches.packing import AnyChunk, Chunk


def agree_on_chunks(chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
    """Make all ranks run equally many chunks and keep the activations of equally many; one collective.

    Args:
        chunks: The chunks of this rank.
        kept: How many of them, counted from the last, keep their activations until the backward pass.

    Returns:
        The chunks, with chunks of a single token appended on ranks that have fewer than others, and the number of the
        last chunks that keep their activations on every rank.
    """
    device = chunks[0].input_ids.device
    sizes = torch.tensor([len(chunks), len(chunks) - kept], device=device)  # the second is the first kept chunk
    dist.all_reduce(sizes, op=dist.ReduceOp.MAX)
    count, first_kept = (int(size) for size in sizes.tolist())
    return [*chunks, *[one_token_chunk(chunks[0])] * (count - len(chunks))], count - first_kept


def one_token_chunk(chunk: AnyChunk) -> Chunk:
    """The smallest chunk that a model can run: the first token of the first text."""
    return Chunk(chunk.input_ids[:1, :1], torch.ones_like(chunk.lengths[:1]), padded=False)
