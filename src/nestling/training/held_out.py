"""Rows of training data that are held out as a dev set (`dev_share`), for data that comes without one.

They are those of whole groups (`nestling.data_checks.groups`), a function of the data, the share and the seed, and
lie in the cache as a BEIR folder; a run keeps a copy in its folder held_out/.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestling.batches.sampling import Source
from nestling.config import SplitConfig, TrainData, TrainingConfig, require
from nestling.config.checks import require_extra
from nestling.export.serving_files import new_directory
from nestling.files import sync
from nestling.records.load import default_name
from nestling.records.store import default_cache, digest, scratch_file, writable

if TYPE_CHECKING:
    from nestling.data_checks.rows import SourceRows

HELD_OUT, KEPT = "held_out", "kept.npy"
NEEDED = ("rensa", "regex")
# Any model finds the documents of a few rows among themselves; they are searched among so many, of all rows, at least.
SEARCHED = 1000
# By default so many rows are held out, a tenth at the most, of datasets of a size at which that costs little.
ROWS, FEWEST, MOST = 200, 1_000, 1_000_000


@dataclass(frozen=True)
class HeldOut:
    """Rows of a dataset that are held out.

    Args:
        keep: [n] bool, the rows that are trained on.
        folder: The others in the BEIR layout, split dev.
    """

    keep: np.ndarray
    folder: Path


def hold_out(config: TrainingConfig, data: TrainData, *, show: bool) -> HeldOut | None:
    """Hold out what `config.dev_share` says of a dataset, or find in the cache what was held out before.

    None where it says 0, and where it says nothing and little would be held out well; `show` prints why.

    Raises:
        ValueError: `dev_share` is set, and the data is of graded pairs, or has too few groups for the share.
    """
    if config.dev_share is not None:
        return hold_out_share(config, data, config.dev_share, show=show) if config.dev_share else None
    if not config.measures_by_default:
        return None
    try:
        return hold_out_some(config, data, show=show)
    except HoldOutError as reason:
        if show:
            print(f"{data.path}: no rows are held out as a dev set: {reason}", flush=True)
        return None


class HoldOutError(ValueError):
    """No rows can be held out."""


def hold_out_some(config: TrainingConfig, data: TrainData, *, show: bool) -> HeldOut | None:
    """`ROWS` rows of a dataset; None for one of few rows, whose figures would say little. Raises `HoldOutError`."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise HoldOutError(f"that needs {', '.join(missing)}, of the extra hygiene; or give a dev set with --dev")
    from nestling.data_checks.rows import open_rows

    rows = open_rows(data.path, split=data.split, columns=data.columns, progress=show)
    count = len(rows)
    if count < FEWEST or rows.graded:
        return None
    if count > MOST:
        raise HoldOutError(f"there are more than {MOST:,}; give a dev set with --dev, or --dev_share 0.0001")
    return hold_out_rows(rows, config, data, min(0.1, ROWS / count), show=show)


def hold_out_share(config: TrainingConfig, data: TrainData, share: float, *, show: bool) -> HeldOut:
    """Hold out a share of a dataset. Raises ValueError if it cannot be."""
    require_extra("dev_share", "hygiene", *NEEDED)
    from nestling.data_checks.rows import open_rows

    rows = open_rows(data.path, split=data.split, columns=data.columns, progress=show)
    require(
        not rows.graded,
        f"{data.path}: dev_share holds out queries with their positives, and these are graded pairs; leave it out",
    )
    return hold_out_rows(rows, config, data, share, show=show)


def hold_out_rows(rows: "SourceRows", config: TrainingConfig, data: TrainData, share: float, *, show: bool) -> HeldOut:
    """Hold out a share of rows that have been read. Raises `HoldOutError` if they are too few groups."""
    name = data.name or default_name(Path(data.path))
    key = [rows.path.name, name, share, config.seed, SEARCHED, "groups"]  # which queries name
    folder = default_cache() / f"held-out-{digest(key)}" / name.replace(os.sep, "_")
    if not folder.is_dir():
        write_held_out_rows(rows, share, config.seed, data.path, folder, progress=show)
    held_out = HeldOut(np.load(folder / KEPT), folder)
    if show:
        all_rows = len(held_out.keep)
        print(
            f"{name}: {all_rows - int(held_out.keep.sum()):,} of {all_rows:,} rows are held out as a dev set "
            "(--dev_share)",
            flush=True,
        )
    return held_out


def write_held_out_rows(
    rows: "SourceRows", share: float, seed: int, source: str, folder: Path, *, progress: bool
) -> None:
    """Choose the rows, and write `folder` in one move: the BEIR layout, and which rows are kept."""
    from nestling.data_checks.groups import DEV, TRAIN, assign, group_rows
    from nestling.data_checks.held_out import searched_documents, split_sizes, write_judged
    from nestling.data_checks.near_duplicates import NearDuplicateCriterion

    groups = group_rows(rows, NearDuplicateCriterion(SplitConfig.threshold, SplitConfig.shingle), progress=progress)
    split = assign(rows, groups, dev_share=share, test_share=0.0, seed=seed)
    train, dev, _ = split_sizes(rows, groups, split)
    if not (train.positives and dev.positives):
        raise HoldOutError(
            f"{source}: dev_share {share:g} holds out {dev.groups:,} of {train.groups + dev.groups:,} groups of rows "
            "that share texts; expected some of them and not all: give another share or seed, or a set with --dev"
        )
    with writable(folder.parent), scratch_file(folder.parent) as scratch:
        scratch.mkdir()
        write_judged(rows, groups, split, searched_documents(rows, split == DEV, SEARCHED), scratch)
        np.save(scratch / KEPT, split == TRAIN)
        sync(scratch / KEPT)
        with suppress(OSError):  # another process has been faster, with the same content
            scratch.rename(folder)


def keep_held_out(run: Path, sources: Sequence[Source]) -> None:
    """Copy what is held out into held_out/ of a run's folder, unless it is there."""
    for folder in (source.held_out for source in sources if source.held_out is not None):
        kept = run / HELD_OUT / folder.name
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            with new_directory(kept) as partial:
                shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(KEPT), dirs_exist_ok=True)
