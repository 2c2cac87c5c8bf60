"""The state of the random number generators, kept so that a forward can be repeated with the same dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the generators that dropout reads.

    Args:
        device: Where the model computes.
        cpu: State of the CPU's generator, uint8.
        accelerator: State of the device's own generator, uint8; None on the CPU.
    """

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), accelerator)

    def set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Use this state inside the block, and go back to the present one after it."""
        present = RandomState.now(self.device)
        self.set()
        try:
            yield
        finally:
            present.set()


class RandomStates:
    """A fixed number of states, stored in one tensor for each generator.

    Thousands of small tensors, allocated between the large ones of the forwards, would fragment the allocator's memory.

    Args:
        count: How many states there will be.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.buffers: list[Tensor] = []

    def keep(self, i: int, state: RandomState) -> None:
        """Store state number `i`."""
        parts = [state.cpu] if state.accelerator is None else [state.cpu, state.accelerator]
        if not self.buffers:
            self.device = state.device
            self.buffers = [part.new_empty(self.count, len(part)) for part in parts]
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer[i] = part

    def __getitem__(self, i: int) -> RandomState:
        # Clones: torch reads a state from the beginning of its storage.
        cpu, *accelerator = (buffer[i].clone() for buffer in self.buffers)
        return RandomState(self.device, cpu, accelerator[0] if accelerator else None)
