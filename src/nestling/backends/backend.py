"""The interface of a training backend.

Every backend averages gradients over ranks. Every method must be called on all ranks, in the same order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor

from nestling.backends.sizes import StateFractions
from nestling.batches.packing import AnyChunk
from nestling.models.token_model import TokenModel


class ForwardBackward(Protocol):
    """The forward and backward passes of one step: what a step uses of a backend.

    Attributes:
        ranks: Number of ranks.
    """

    ranks: int

    def agree_on_chunks(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        """The chunks to run, and how many of the last ones keep their activations until the backward pass.

        With sharded parameters both numbers are made equal on all ranks. Other backends return their arguments.

        Args:
            chunks: The chunks of this rank.
            kept: How many of the last chunks this rank has memory to keep the activations of.
        """

    def computing(self) -> AbstractContextManager[object]:
        """A context for forward passes that share autocast's weight cache; see `TokenModel.computing`."""

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        """Output of the model for a chunk, such as embeddings [B, D] float32.

        Args:
            chunk: The texts.
            last_backward: Whether the backward pass of this chunk will be the last one of the step.
        """

    def accumulation(self) -> AbstractContextManager[None]:
        """A context for all backward passes of a step, whose gradients add up."""

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        """Add to the gradients of the parameters, and synchronise them over ranks after the last chunk.

        Args:
            output: What `forward` returned for a chunk.
            gradient: Gradient of the loss with respect to it.
            last: Whether this is the last backward pass of the step.
        """


class Backend(ForwardBackward, Protocol):
    """A model and its optimizer in training, on one rank or several.

    Attributes:
        model: The model.
        name: Name of the backend, for output.
        sharded: Whether parameters are sharded between forward passes. Then every forward pass is a collective, and
            all ranks must run equally many.
    """

    model: TokenModel
    name: str
    sharded: bool

    @property
    def independent(self) -> bool:
        """Whether ranks communicate in no pass of a step except its last backward pass."""

    @property
    def state_fractions(self) -> StateFractions:
        """The fraction of the model's state that one rank holds."""

    def update(self, learning_rate: float, max_norm: float, accepts: Callable[[float], bool]) -> float:
        """Clip the gradients, update the weights if `accepts` agrees, and reset the gradients.

        Args:
            learning_rate: Learning rate of this step.
            max_norm: Gradients are scaled down to this global L2 norm; 0 does not clip.
            accepts: Whether to update, given the norm before clipping; must return the same on all ranks, and False
                for a norm that is not finite.

        Returns:
            The norm before clipping.
        """

    def zero_grad(self) -> None:
        """Discard the gradients of an unfinished step."""

    def tensors(self) -> dict[str, Tensor]:
        """Unsharded trained parameters and persistent buffers by name on rank 0; unspecified on other ranks."""

    def save_optimizer(self, folder: Path) -> None:
        """Write the optimizer's state into a folder on a file system that all ranks share."""

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        """Load a checkpoint into the model, in place, and into its optimizer unless `optimizer` is False."""
