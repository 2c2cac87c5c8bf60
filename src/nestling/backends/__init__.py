"""How one process, DDP, DeepSpeed's ZeRO and FSDP2 run the same step: one small adapter each."""

from nestling.backends.backend import Backend, ForwardBackward
from nestling.backends.out_of_memory import OutOfMemoryGuard
from nestling.backends.prepare import prepare

__all__ = ["Backend", "ForwardBackward", "OutOfMemoryGuard", "prepare"]
