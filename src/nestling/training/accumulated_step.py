"""The step of a loss that is a sum over chunks: each runs forward and backward, the last synchronises gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nestling.backends import ForwardBackward
from nestling.batches.packing import AnyChunk


def accumulated_backward(
    backend: ForwardBackward, chunks: Sequence[AnyChunk], loss_of: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Add the gradient of the loss to the parameters' gradients; the loss of this rank, a detached scalar.

    Args:
        backend: The model, and how its ranks synchronise.
        chunks: This rank's prompts, on the model's device.
        loss_of: From the number of a chunk and what the model gives for it, [n, C], to its share of the loss of the
            global batch. The shares of all chunks of all ranks sum to the loss.
    """
    everything, _ = backend.agree_on_chunks(chunks, 0)
    total = torch.zeros((), device=chunks[0].input_ids.device)
    with backend.computing(), backend.accumulation():
        for i, chunk in enumerate(everything):
            last = i + 1 == len(everything)
            logits = backend.forward(chunk, last=last)
            leaf = logits.detach().requires_grad_()
            if i < len(chunks):
                loss = loss_of(i, leaf)
                # Backends take the mean of the ranks' gradients, and the gradient is the sum of the shares'.
                (loss * backend.ranks).backward()
                total += loss.detach()
            backend.backward(logits, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, last=last)
            del logits  # and its graph, before the next one is made
    return total
