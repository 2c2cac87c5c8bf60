"""DeepSpeed ZeRO: sharded optimizer state (stage 1), also gradients (stage 2), also parameters (stage 3)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling.backends.agreement import agree_on_chunks
from nestling.backends.optimizer import set_learning_rate
from nestling.backends.sizes import StateFractions
from nestling.batches.packing import AnyChunk
from nestling.checkpoint.state import trainable_tensors
from nestling.distributed.ranks import any_rank, rank_and_world
from nestling.models.token_model import TokenModel

ENGINE = "engine"  # the folder inside a checkpoint that DeepSpeed writes and reads


class Zero:
    """A model in a DeepSpeed engine.

    Calling only `engine.backward` for every chunk would reduce, and in stages 2 and 3 keep, the gradients of the last
    chunk as if they were those of the step: gradients would silently be wrong by 80 %. Hence `accumulation` and the
    gradient accumulation boundary.

    Args:
        model: The model.
        engine: DeepSpeed's engine of the model.
        full_gradients: Whether ranks keep full (unsharded) gradients and reduce them once, after the last backward pass
            of a step. Otherwise, for lack of memory, they reduce them after each chunk.
    """

    def __init__(self, model: TokenModel, engine: Any, *, full_gradients: bool) -> None:
        self.model = model
        self.engine = engine
        self.full_gradients = full_gradients
        self.stage = int(engine.zero_optimization_stage())
        self.name = f"DeepSpeed ZeRO-{self.stage}"
        self.ranks = rank_and_world()[1]
        self.sharded = self.stage == 3
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)

    @property
    def independent(self) -> bool:
        return self.full_gradients and not self.sharded

    @property
    def state_fractions(self) -> StateFractions:
        offloaded = self.engine.zero_cpu_offload()
        return zero_fractions(self.stage, self.ranks, full_gradients=self.full_gradients, offloaded=offloaded)

    def agree_on_chunks(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        if self.full_gradients:
            return agree_on_chunks(chunks, kept) if self.sharded else (chunks, kept)
        # Stages 2 and 3 now reduce gradients after each chunk; and stage 3 accumulates the gradient of a backward pass
        # only if a forward pass came right before it, so that no chunk can keep its activations.
        return agree_on_chunks(chunks, 0 if self.sharded else kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.model.computing(cache=False if self.sharded else None)

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        output: Tensor = self.engine(chunk)
        return output

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        self._finite.fill_(True)
        if self.full_gradients:
            with self.engine.coalesce_grad_reduction():
                yield
        else:
            yield

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        self._finite &= gradient.isfinite().all() & output.detach().isfinite().all()
        if not self.full_gradients:
            self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward((output * gradient).sum(), scale_wrt_gas=False)

    def update(self, learning_rate: float, max_norm: float, accepts: Callable[[float], bool]) -> float:
        """As `Backend.update`; DeepSpeed clips, as configured by `prepare`, and knows the norm only after its step.

        Raises:
            FloatingPointError: The norm is not finite although all passes were; the weights have been updated.
        """
        if any_rank(not bool(self._finite), self._finite.device):
            accepts(math.nan)
            self.zero_grad()
            return math.nan
        set_learning_rate(self.engine.optimizer, learning_rate)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not accepts(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm}, and DeepSpeed has already updated the weights with it; "
                "resume from the last checkpoint, or start again with a lower learning rate or precision fp32"
            )
        return norm

    def zero_grad(self) -> None:
        self.engine.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        if self.stage < 3:
            return trainable_tensors(self.model)
        import deepspeed

        on_rank_zero = rank_and_world()[0] == 0
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._parameters().items():
            with deepspeed.zero.GatheredParameters([tensor]):
                if on_rank_zero:
                    tensors[name] = tensor.detach().to("cpu", copy=True)
        return tensors

    def _parameters(self) -> dict[str, Tensor]:
        """As `trainable_tensors`, but the parameters themselves, whose attributes DeepSpeed gathers by."""
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: tensors[name] for name in trainable_tensors(self.model)}

    def save_optimizer(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False, exclude_frozen_parameters=True)

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        """As `Backend.restore`.

        Raises:
            ValueError: The checkpoint was written by another number of ranks.
        """
        try:
            path, _ = self.engine.load_checkpoint(
                str(folder), tag=ENGINE, load_module_strict=False, load_optimizer_states=optimizer
            )
        except Exception as error:
            raise ValueError(
                f"{folder} cannot be resumed with {self.name} on {rank_and_world()[1]} ranks: {error}"
            ) from error
        if path is None:
            raise ValueError(f"{folder} holds no DeepSpeed state; resume with the backend that the run started with")


def zero_fractions(stage: int, ranks: int, *, full_gradients: bool, offloaded: bool) -> StateFractions:
    """The fraction of a model's state that one rank holds; none of the optimizer's if it is offloaded to the CPU."""
    shard = 1 / ranks
    return StateFractions(
        weights=shard if stage == 3 else 1.0,
        gradients=shard + full_gradients,
        optimizer=0.0 if offloaded else 3 * shard,
    )
