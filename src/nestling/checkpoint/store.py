"""The checkpoints of a run: `step-N` folders, written atomically, of which the newest and the best are kept."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nestling.checkpoint.atomic import clean_up, damage, remove_folder, write_folder
from nestling.distributed.ranks import on_rank_zero

logger = logging.getLogger(__name__)

STEP_FOLDER = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a run's checkpoints. Methods that say so must be called by every rank; rank 0 does the work.

    Args:
        folder: The folder of the `step-N` folders; made when needed.
        keep: How many of the newest checkpoints to keep, beside the best one.
    """

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"{self.keep} checkpoints are to be kept; keep at least 1, or the run cannot be resumed")

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        matches = (STEP_FOLDER.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """The path of the checkpoint of a step, whether it exists or not."""
        return self.folder / f"step-{step}"

    def save(self, step: int, write: Callable[[Path], None], *, best_step: int | None = None) -> Path:
        """Write the checkpoint of `step`, then remove old ones. Every rank must call it.

        Args:
            step: Number of training steps done.
            write: Writes this rank's files into the folder that it is given; called on every rank.
            best_step: Step of the best checkpoint so far, which is not removed.

        Raises:
            WriteError: It could not be written; earlier checkpoints are intact.
        """
        write_folder(self.path(step), write)
        on_rank_zero(lambda: self.rotate(best_step))
        return self.path(step)

    def rotate(self, best_step: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and the best one."""
        for step in self.steps()[: -self.keep]:
            if step != best_step:
                remove_folder(self.path(step))

    def recover(self) -> Path | None:
        """The newest undamaged checkpoint, or None. Every rank must call it, before training resumes.

        Removes partial folders that killed processes left. Logs newer checkpoints that are damaged and renames them to
        `step-N.damaged`, so that the resumed run can write these steps again.
        """
        return on_rank_zero(self.clean_up_and_find)

    def clean_up_and_find(self) -> Path | None:
        """`recover` on one rank."""
        if self.folder.is_dir():
            clean_up(self.folder)
        for step in reversed(self.steps()):
            problem = damage(self.path(step))
            if problem is None:
                return self.path(step)
            self.reject(step, problem)
        return None

    def reject(self, step: int, problem: str) -> None:
        """Rename a damaged checkpoint and log what is wrong with it."""
        rejected = self.folder / f"step-{step}.damaged"
        shutil.rmtree(rejected, ignore_errors=True)
        os.replace(self.path(step), rejected)
        logger.warning("%s is damaged: %s. It is now %s; looking for an older one", self.path(step), problem, rejected)

    def complete(self) -> str:
        """The undamaged checkpoints, for a message."""
        steps = [str(step) for step in self.steps() if damage(self.path(step)) is None]
        return f"complete checkpoints: {', '.join(steps)}" if steps else "there is no complete checkpoint"

    def verified(self, step: int) -> Path:
        """The path of a step's checkpoint, after a check of every byte. Every rank must call it.

        Raises:
            ValueError: It is missing or damaged.
        """

        def verify() -> Path:
            problem = damage(self.path(step))
            if problem is not None:
                raise ValueError(f"{self.path(step)} cannot be loaded: {problem}; {self.complete()}")
            return self.path(step)

        return on_rank_zero(verify)
