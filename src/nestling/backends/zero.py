"""DeepSpeed's ZeRO: optimizer state (1), gradients too (2), or parameters as well (3) in shards."""

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

ENGINE = "engine"  # DeepSpeed's own folder inside a checkpoint


class Zero:
    """Gradients are reduced in one block after the last backward pass, or after each where whole ones do not fit.

    Calling `engine.backward` for every chunk and no more would reduce, and with stages 2 and 3 keep, those of the last
    chunk as if they were all: an error of 80 % without a word.

    Args:
        model: The model.
        engine: DeepSpeed's engine around it.
        whole_gradients: Whether the gradients of all trained parameters fit in a rank's memory.
    """

    def __init__(self, model: TokenModel, engine: Any, *, whole_gradients: bool) -> None:
        self.model = model
        self.engine = engine
        self.whole_gradients = whole_gradients
        self.stage = int(engine.zero_optimization_stage())
        self.name = f"DeepSpeed ZeRO-{self.stage}"
        self.ranks = rank_and_world()[1]
        self.sharded = self.stage == 3
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)

    @property
    def independent(self) -> bool:
        return self.whole_gradients and not self.sharded

    @property
    def state_fractions(self) -> StateFractions:
        offloaded = self.engine.zero_cpu_offload()
        return zero_fractions(self.stage, self.ranks, whole_gradients=self.whole_gradients, offloaded=offloaded)

    def agree(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        if self.whole_gradients:
            return agree_on_chunks(chunks, kept) if self.sharded else (chunks, kept)
        # Stages 2 and 3 communicate with each chunk then; and stage 3 counts a backward pass as a new part of the
        # gradient only if a forward came before it, so that no graphs can wait side by side.
        return agree_on_chunks(chunks, 0 if self.sharded else kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.model.computing(cache=False if self.sharded else None)

    def encode(self, chunk: AnyChunk, *, last: bool) -> Tensor:
        encoded: Tensor = self.engine(chunk)
        return encoded

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        self._finite.fill_(True)
        if self.whole_gradients:
            with self.engine.coalesce_grad_reduction():
                yield
        else:
            yield

    def backward(self, encoded: Tensor, gradient: Tensor, *, last: bool) -> None:
        self._finite &= gradient.isfinite().all() & encoded.detach().isfinite().all()
        if not self.whole_gradients:
            self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward((encoded * gradient).sum(), scale_wrt_gas=False)

    def update(self, learning_rate: float, max_norm: float, accepts: Callable[[float], bool]) -> float:
        """As `Backend.update`; DeepSpeed clips, as `prepare` has told it, and knows the norm only after its step.

        Raises:
            FloatingPointError: A gradient turned out not to be finite when the weights had been updated with it.
        """
        if any_rank(not bool(self._finite), self._finite.device):
            accepts(math.nan)
            self.discard()
            return math.nan
        set_learning_rate(self.engine.optimizer, learning_rate)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not accepts(norm):
            raise FloatingPointError(
                f"the gradient's norm was {norm} when DeepSpeed had updated the weights with it, so they are spoiled; "
                "resume from the last checkpoint, or start again with a lower learning rate or precision fp32"
            )
        return norm

    def discard(self) -> None:
        self.engine.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        if self.stage < 3:
            return trainable_tensors(self.model)
        import deepspeed

        keep = rank_and_world()[0] == 0
        whole: dict[str, Tensor] = {}
        for name, tensor in self._parameters().items():
            with deepspeed.zero.GatheredParameters([tensor]):
                if keep:
                    whole[name] = tensor.detach().to("cpu", copy=True)
        return whole

    def _parameters(self) -> dict[str, Tensor]:
        """As `trainable_tensors`, but DeepSpeed's own parameters, which know their shards."""
        live = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: live[name] for name in trainable_tensors(self.model)}

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


def zero_fractions(stage: int, ranks: int, *, whole_gradients: bool, offloaded: bool) -> StateFractions:
    """What one of so many ranks holds of a model; of the optimizer nothing where that is on the CPU."""
    part = 1 / ranks
    return StateFractions(
        weights=part if stage == 3 else 1.0,
        gradients=part + whole_gradients,
        optimizer=0.0 if offloaded else 3 * part,
    )
