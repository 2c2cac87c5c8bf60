"""How one process, DDP, DeepSpeed's ZeRO and FSDP2 run the same step: one small adapter each."""

from nestling.backends.backend import Backend, ForwardBackward
from nestling.backends.out_of_memory import guard_out_of_memory
from nestling.backends.prepare import prepare

__all__ = ["Backend", "ForwardBackward", "guard_out_of_memory", "prepare"]
