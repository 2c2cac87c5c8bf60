"""What a step needs in memory: measured on a sample chunk and estimated before the first step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nestling.backends.backend import Backend
from nestling.backends.sizes import StateFractions, free_memory, full_bytes, trained_bytes
from nestling.batches.packing import Chunk
from nestling.console import working
from nestling.distributed.ranks import rank_and_world
from nestling.heap import trim_heap
from nestling.models.token_model import TokenModel
from nestling.training.cached import ActivationBudget

LESS_STATE = "use tuning lora, or optim adamw_torch_8bit, or shard them over more processes with ZeRO-3 or FSDP2"


@dataclass(frozen=True)
class MemoryEstimate:
    """What a rank needs at its peak, in bytes; embeddings, the loss and the libraries' own buffers come on top.

    Args:
        weights: Parameters and buffers.
        gradients: Of the trained parameters.
        optimizer: Its state, and its copies of weights.
        chunk: Activations of the largest chunk.
        kept: Activations kept between the two passes, at the most.
        room: Memory for all of these: what is free, and what of them is allocated already.
    """

    weights: float
    gradients: float
    optimizer: float
    chunk: float
    kept: float
    room: float

    @property
    def total(self) -> float:
        return self._state + self.chunk + self.kept

    @property
    def _state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    def items(self) -> dict[str, object]:
        """Lines for a summary."""
        lines: dict[str, object] = {
            "memory": f"{gigabytes(self.total)} of {gigabytes(self.room)} on each process",
            "- weights": gigabytes(self.weights),
            "- gradients": gigabytes(self.gradients),
            "- optimizer": gigabytes(self.optimizer),
            "- largest chunk": gigabytes(self.chunk),
        }
        if self.kept:
            lines["- kept activations"] = f"up to {gigabytes(self.kept)}"
        return lines if self.advice is None else {**lines, "WARNING": self.advice}

    @property
    def advice(self) -> str | None:
        """What does not fit and which setting to lower; None if everything fits."""
        if self.total <= self.room:
            return None
        if self._state > self.room:
            return f"weights, gradients and optimizer do not fit; {LESS_STATE}"
        if self._state + self.chunk > self.room:
            return "the largest chunk does not fit; lower chunk_tokens, or set gradient_checkpointing_length"
        return "the activations kept between the two passes may not fit; lower activation_memory"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def estimate(
    model: nn.Module, fractions: StateFractions, *, chunk: float, kept: float, room: float | None = None
) -> MemoryEstimate:
    """What a rank needs for a model that is on its device, before the first step.

    On a CPU the room excludes an optimizer state that has been loaded already: psutil does not tell whose memory it is.

    Args:
        model: With all its parameters, trained or not.
        fractions: What the rank holds of its state.
        chunk: Bytes of the largest chunk's activations.
        kept: Bytes of the activations kept between the two passes.
        room: Bytes of another device; by default the model's own.
    """
    weights = fractions.weights * full_bytes([*model.parameters(), *model.buffers()])
    trained = trained_bytes(model)
    return MemoryEstimate(
        weights=weights,
        gradients=fractions.gradients * trained,
        optimizer=fractions.optimizer * trained,
        chunk=chunk,
        kept=kept,
        room=room_of(next(model.parameters()).device, weights) if room is None else room,
    )


def room_of(device: torch.device, weights: float) -> float:
    """Bytes that a process can use on a device, counting those that its weights take already."""
    there = weights if device.type == "cpu" else float(torch.get_device_module(device).memory_allocated(device))
    return free_memory(device) + there


def room_for_activations(free: float, trained: float, fractions: StateFractions) -> float:
    """Half of the memory that is free once the first step has allocated gradients and AdamW's state.

    Args:
        free: Bytes, with the weights in their place.
        trained: Bytes of the trained parameters, whole.
        fractions: What the rank holds of them.
    """
    return (free - (fractions.gradients + fractions.optimizer) * trained) / 2


def kept_bytes(room: float, position: float, positions: float) -> float:
    """Bytes of the activations kept between the two passes: those of so many positions, as far as there is room."""
    return max(0.0, min(room, position * positions))


def activation_bytes(model: nn.Module, encode: Callable[[Chunk], Tensor], chunk: Chunk) -> int:
    """Bytes of the activations that a chunk's forward keeps for its backward, parameters excluded.

    Args:
        model: Whose parameters do not count.
        encode: Runs it on a chunk.
        chunk: Run twice: tensors that both forwards keep, such as weights cast to bfloat16, do not count either.
    """
    # By the storage itself: tensors of a model without weights (`nestling.costs`) have no addresses.
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        first = encode(chunk)
        seen |= found.keys()
        found.clear()
        second = encode(chunk)
    del first, second
    return sum(found.values())


def sample_chunk(length: int, positions: int, vocabulary: int, device: torch.device) -> Chunk:
    """Texts of `length` random tokens that fill `positions`, at least one."""
    rows = max(1, positions // length)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocabulary, (rows, length), generator=generator)
    return Chunk(input_ids, torch.full((rows,), length), padded=False).to(device)


# Positions of a measured chunk, of which two are in memory at once: a tenth of what a chunk on a GPU may have. On a CPU
# they take as long as a step.
SAMPLE_POSITIONS, ON_CPU = 1024, 128


def bytes_per_position(backend: Backend, length: int) -> float:
    """Bytes of activations for each position, the most that a chunk of texts of up to `length` tokens takes.

    Measured on small chunks, in smaller ones still if memory runs out: chunks of the size that is set may not fit, of
    which training finds out by itself.

    Raises:
        ValueError: Not even a chunk of one position fits.
    """
    backend.model.train()
    forward = partial(backend.forward, last_backward=True)
    positions = ON_CPU if backend.model.device.type == "cpu" else SAMPLE_POSITIONS
    while positions:
        try:
            with backend.computing():
                return most_per_position(backend.model, forward, length, positions)
        except torch.OutOfMemoryError as error:
            if backend.sharded:  # the other ranks are in the middle of the same forward
                raise ValueError(f"out of memory in a forward of {positions} positions; {LESS_STATE}") from error
            positions //= 2
    raise ValueError(f"out of memory in a forward of one position; {LESS_STATE}")


def most_per_position(model: TokenModel, forward: Callable[[Chunk], Tensor], length: int, positions: int) -> float:
    """Bytes of activations for each position, the most of chunks of long texts and of those that are not checkpointed.

    Args:
        model: In training, on its device.
        forward: Runs it on a chunk.
        length: Tokens of the longest text.
        positions: Positions of the chunks to measure with; longer texts are estimated from shorter ones, since
            what attention keeps for a position grows in proportion to the length of its text.
    """

    def measured(tokens: int, as_of: int) -> float:
        chunk = sample_chunk(tokens, positions, model.config.vocab_size, model.device)
        with model.checkpointing_as_of(as_of):
            return activation_bytes(model, forward, chunk) / chunk.positions

    def at(tokens: int) -> float:
        if tokens <= positions or positions == 1:
            return measured(min(tokens, positions), tokens)
        half, whole = (measured(each, tokens) for each in (positions // 2, positions))
        return whole + (whole - half) / (positions - positions // 2) * (tokens - positions)

    return max(at(each) for each in {length, min(length, model.longest_without_checkpointing)} - {0})


def activation_budget(backend: Backend, length: int, memory: float | None) -> ActivationBudget:
    """How much memory activations may keep between the two passes.

    Args:
        backend: The model in training.
        length: Tokens of the longest texts.
        memory: Bytes; None for half of what is free once gradients and AdamW's state are allocated, and on a CPU, whose
            memory others take as well, for half of what is free at each step.
    """
    model = backend.model
    with working("measuring the memory of a chunk", shown=rank_and_world()[0] == 0):
        position = bytes_per_position(backend, length)
    trim_heap()  # else what was measured stays in the process, and in those that it forks
    if memory is not None:
        return ActivationBudget(memory, position)
    half = room_for_activations(free_memory(model.device), trained_bytes(model), backend.state_fractions)
    on_cpu = model.device.type == "cpu"
    return ActivationBudget(half, position, (lambda: free_memory(model.device) / 2) if on_cpu else None)
