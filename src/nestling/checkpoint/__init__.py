"""Run folders, atomic checkpoints, exact resuming and preemption."""

from nestling.checkpoint.guards import NonFiniteGuard, StopSignal, ignore_stop_signals
from nestling.checkpoint.run_folder import RunFolder, check_run_folder, open_run_folder
from nestling.checkpoint.state import (
    TrainingState,
    load_state,
    restore_tensors,
    save_optimizer,
    trainable_tensors,
    write_training,
)
from nestling.checkpoint.store import Checkpoints

__all__ = [
    "Checkpoints",
    "NonFiniteGuard",
    "RunFolder",
    "StopSignal",
    "TrainingState",
    "check_run_folder",
    "ignore_stop_signals",
    "load_state",
    "open_run_folder",
    "restore_tensors",
    "save_optimizer",
    "trainable_tensors",
    "write_training",
]
