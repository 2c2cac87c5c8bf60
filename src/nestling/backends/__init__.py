"""Training backends: one process, DDP, DeepSpeed ZeRO and FSDP2, each an adapter with the same interface."""

from nestling.backends.backend import Backend, ForwardBackward
from nestling.backends.out_of_memory import OutOfMemoryGuard
from nestling.backends.prepare import prepare

__all__ = ["Backend", "ForwardBackward", "OutOfMemoryGuard", "prepare"]
