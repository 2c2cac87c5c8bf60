"""How one process, DDP, DeepSpeed's ZeRO and FSDP2 run the same step: one small adapter each."""

from nestling.backends.backend import Backend, Passes
from nestling.backends.prepare import prepare
from nestling.backends.survivor import survive

__all__ = ["Backend", "Passes", "prepare", "survive"]
