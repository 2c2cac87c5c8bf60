"""Atomic writing of folders, with a manifest of checksums by which later damage is detected."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from nestling.console import working
from nestling.disk_errors import ADVICE, WriteError, find_write_error
from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_and_world
from nestling.files import sync

MANIFEST = "manifest.json"


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder so that `target` is either complete or as before. Every rank must call it.

    1. The ranks write their files into `.NAME.partial` beside the target.
    2. A manifest of sizes and checksums is added, and everything is flushed to the disk (fsync).
    3. An older folder at the target is renamed, the new one is renamed to the target, and the older one is removed.

    On an error on any rank the partial folder is removed and the target is unchanged.

    Args:
        target: The folder to write or replace.
        write: Writes this rank's files into the folder that it is given; called on every rank.

    Raises:
        WriteError: A disk or quota is full, a file may not be so large, or the folder cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with working(f"writing {target}", shown=rank_and_world()[0] == 0):
            on_rank_zero(lambda: begin(partial))
            on_every_rank(lambda: write(partial))
            on_rank_zero(lambda: seal(partial))
    except BaseException as error:
        written = on_rank_zero(lambda: discard(partial)) if isinstance(error, Exception) else discard(partial)
        found = find_write_error(error)
        if found is not None and found.errno is not None:
            raise unwritten_checkpoint(target, found.errno, written) from error
        raise
    on_rank_zero(lambda: move_into_place(partial, target))


def begin(partial: Path) -> None:
    """Make an empty folder, in place of what a killed run may have left there."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def seal(partial: Path) -> None:
    """Add the manifest and flush every file to the disk."""
    write_manifest(partial)
    for path in [*partial.rglob("*"), partial]:
        sync(path)


def discard(partial: Path) -> int:
    """Remove a folder; returns the bytes that its files had."""
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    shutil.rmtree(partial, ignore_errors=True)
    return written


def move_into_place(partial: Path, target: Path) -> None:
    """Rename a complete partial folder to its target. If killed between the renames, `clean_up` finishes the work."""
    older = set_aside(target) if target.exists() else None
    os.replace(partial, target)
    sync(target.parent)
    if older is not None:
        shutil.rmtree(older)


def set_aside(folder: Path) -> Path:
    """Rename a folder to `.NAME.removed`, so that no partly deleted folder ever has its name; returns the new path."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    return aside


def remove_folder(folder: Path) -> None:
    """Remove a folder so that, even when killed, it is either complete or gone."""
    shutil.rmtree(set_aside(folder))


def clean_up(parent: Path) -> None:
    """Remove what killed processes left in `parent`, and finish a write of which only the last rename is missing."""
    for partial in parent.glob(".*.partial"):
        target = parent / partial.name.removeprefix(".").removesuffix(".partial")
        if damage(partial) is None and not target.exists():
            os.replace(partial, target)
        else:
            shutil.rmtree(partial)
    for aside in parent.glob(".*.removed"):
        shutil.rmtree(aside)
    sync(parent)


def write_manifest(folder: Path) -> None:
    """List every file of `folder` with its size in bytes and the XXH3-128 checksum of its content."""
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "xxh3_128": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """A description of the damage to a folder that `write_folder` wrote, or None. Reads every byte."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        with working(f"checking every byte of {folder}"):
            return next(file_damage(folder, entries), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is not readable ({error!r})"


def file_damage(folder: Path, entries: dict[str, dict[str, object]]) -> Iterator[str]:
    """A description of the damage to each damaged file of the manifest's `entries`."""
    for name, entry in entries.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            yield f"{name} has {size} bytes instead of {entry['bytes']}"
        elif checksum(folder / name) != entry["xxh3_128"]:
            yield f"the content of {name} does not match its checksum"


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def unwritten_checkpoint(target: Path, number: int, written: int) -> WriteError:
    """The error of a checkpoint of which only so many bytes could be written, for an errno number."""
    free = shutil.disk_usage(target.parent if target.parent.exists() else target.parents[1]).free
    return WriteError(
        number,
        f"cannot write the checkpoint {target}: {os.strerror(number)}; the {written / 1e6:.1f} MB written are removed "
        f"again, {free / 1e6:.1f} MB are free now, and earlier checkpoints are intact: {ADVICE[number]}, and resume "
        "the run (--resume true)",
    )
