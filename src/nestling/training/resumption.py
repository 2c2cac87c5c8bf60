"""What a run begins with: step 0, or the state of its newest checkpoint."""

import logging
from pathlib import Path

from nestling.backends.backend import Backend
from nestling.checkpoint.run_folder import RunFolder
from nestling.checkpoint.state import TrainingState, load_state
from nestling.checkpoint.store import Checkpoints
from nestling.config import require
from nestling.console import working
from nestling.distributed.ranks import on_rank_zero, rank_and_world

logger = logging.getLogger(__name__)


def start_state(backend: Backend, newest: Path | None, data: str, folder: RunFolder) -> TrainingState:
    """The state to start from: step 0, or that of a checkpoint, whose training data must be the same."""
    if newest is None:
        return TrainingState(data=data)
    state = load_state(newest)
    require(
        state.data == data,
        f"the training data is not what the run in {folder.path} began with; start a new run for it",
    )
    with working(f"loading {newest}", shown=rank_and_world()[0] == 0):
        backend.restore(newest)
    return state


def forget_missing_best(state: TrainingState, checkpoints: Checkpoints) -> None:
    """Forget the best result if its checkpoint is gone, which else only the export at the end of the run would find."""
    best = state.best_step
    if best is None or on_rank_zero(checkpoints.path(best).is_dir):
        return
    state.forget_best()
    if rank_and_world()[0] == 0:
        logger.warning(
            "the best checkpoint so far, %s, is gone: final/ will be the best of the evaluations from now on, or the "
            "last step",
            checkpoints.path(best),
        )
