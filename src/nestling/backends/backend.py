"""What the recipes ask of a training backend.

Every backend takes the mean over ranks of their gradients. Every method is for all ranks to call, in the same order.
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
    """The forward and backward passes of a step.

    Attributes:
        ranks: How many ranks there are.
    """

    ranks: int

    def agree(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        """The chunks to run and how many of them keep their graphs; the same numbers on all ranks if sharded."""

    def computing(self) -> AbstractContextManager[object]:
        """Around several forwards between two updates, for them to share what they can."""

    def encode(self, chunk: AnyChunk, *, last: bool) -> Tensor:
        """Raw embeddings [B, D] float32 of a chunk; `last` says that its backward pass will be the step's last."""

    def accumulation(self) -> AbstractContextManager[None]:
        """Around all backward passes of a step."""

    def backward(self, encoded: Tensor, gradient: Tensor, *, last: bool) -> None:
        """Add to the parameters' gradients, given that of a chunk's embeddings; synchronise them with the last."""


class Backend(ForwardBackward, Protocol):
    """A model in training, and how its ranks synchronise.

    Attributes:
        model: The model itself.
        name: What the run says it trains with.
        sharded: Whether its parameters are in shards between forwards; every forward is a collective then, and ranks
            must run equally many.
    """

    model: TokenModel
    name: str
    sharded: bool

    @property
    def independent(self) -> bool:
        """Whether ranks communicate in no forward, and in no backward pass but the step's last."""

    @property
    def state_fractions(self) -> StateFractions:
        """What a rank holds of the model's state."""

    def update(self, learning_rate: float, max_norm: float, accepts: Callable[[float], bool]) -> float:
        """End a step: clip, ask `accepts` with the gradient's L2 norm before clipping, update or not; that norm.

        Args:
            learning_rate: Of this step.
            max_norm: The gradient is scaled down to this norm; 0 does not clip.
            accepts: Whether to update, the same on all ranks. A norm that is not finite is to be refused.
        """

    def discard(self) -> None:
        """Forget the gradients of an unfinished step."""

    def tensors(self) -> dict[str, Tensor]:
        """Trained parameters and persistent buffers by name, whole, on rank 0; on other ranks anything."""

    def save_optimizer(self, folder: Path) -> None:
        """Write the optimizer's state into a folder that all ranks see."""

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        """Load a checkpoint into the model, in place, and its optimizer."""
