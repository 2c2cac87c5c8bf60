"""The folder of a run. A run can be resumed only with the same settings, and only one process at a time can use it.

config.yaml    the resolved settings that the run was started with; `--config` reads it
run.json       one entry for each launch: time, command, number of ranks, versions, git commit
checkpoints/   see `nestling.checkpoint.store`
.lock          locked while a run uses the folder
"""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

from nestling import __version__
from nestling.config.nested import flat, plain
from nestling.config.yaml_files import read_yaml
from nestling.distributed.ranks import on_rank_zero, rank_and_world
from nestling.files import replace_text
from nestling.locks import lock
from nestling.run_files import CONFIG, LAUNCHES, reading

logger = logging.getLogger(__name__)

LOCK = ".lock"
PACKAGES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class RunFolder:
    """A run folder that this process has locked.

    Args:
        path: The folder.
        resumed: Whether it holds a run that was started before.
    """

    path: Path
    resumed: bool

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def final(self) -> Path:
        return self.path / "final"


@contextmanager
def open_run_folder(
    path: Path, config: Mapping[str, object], *, resume: bool, may_differ: Collection[str] = ()
) -> Iterator[RunFolder]:
    """A context that starts a run in a new or empty folder, or resumes the run in it. Every rank must call it.

    Args:
        path: The run folder. With `resume` it may also be new, so that a job that always resumes can start as well.
        config: The resolved settings, nested; written to config.yaml at the start.
        resume: Whether to resume the run in the folder, if there is one.
        may_differ: Keys (dotted if nested) whose values may differ in a resumed run: those that affect neither data,
            weights nor schedule, such as the path of the folder, tracking and the number of data workers.

    Raises:
        FileExistsError: The folder is not empty and `resume` is off, or it holds something else than a run.
        NotADirectoryError, PermissionError: The folder cannot be made or written.
        ValueError: Another process uses the folder, or its run has other settings (the error names each).
    """
    with ExitStack() as stack:

        def claim() -> bool:
            check_run_folder(path, config, resume=resume, may_differ=may_differ)
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(path / LOCK))
            # Checked again with the lock held: another run may have started in between.
            check_run_folder(path, config, resume=resume, may_differ=may_differ)
            resumed = (path / CONFIG).exists()
            if not resumed:
                replace_text(path / CONFIG, yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
            record_launch(path / LAUNCHES)
            return resumed

        yield RunFolder(path, resumed=on_rank_zero(claim))


def check_run_folder(
    path: Path, config: Mapping[str, object], *, resume: bool, may_differ: Collection[str] = ()
) -> None:
    """Raise the errors of `open_run_folder` without changing the folder, to check it before data and model are read."""
    require_usable(path, resume)
    if (path / CONFIG).exists():
        require_same_config(path / CONFIG, plain(config), may_differ)


def require_usable(path: Path, resume: bool) -> None:
    """Raise OSError unless a run can be started in the folder or, with `resume`, resumed."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; give a folder for the run")
    require_writable(path)
    # A process that is killed before it writes the settings leaves only dot files: no run has started.
    contents = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")] if path.exists() else []
    if contents and CONFIG not in contents:
        raise FileExistsError(
            f"{path} exists and is not empty, but has no {CONFIG}, so there is no run to resume in it; choose another "
            "folder (--output_dir)"
        )
    if contents and not resume:
        raise FileExistsError(
            f"{path} exists and is not empty; continue the run in it with --resume true, or choose another folder "
            "(--output_dir)"
        )


def require_writable(path: Path) -> None:
    """Raise OSError if a folder at `path` could not be made or written; makes none."""
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file, so that {path} cannot be a folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} cannot be written, so that {path} cannot hold a run; choose another place")


def require_same_config(path: Path, config: Mapping[str, object], may_differ: Collection[str]) -> None:
    """Raise ValueError if `config` differs from the one at `path` in other keys than `may_differ`."""
    started, now = flat(read_yaml(path)), flat(config)
    different = [key for key in {**started, **now} if started.get(key, "(absent)") != now.get(key, "(absent)")]
    refused = [key for key in different if not any(key == free or key.startswith(f"{free}.") for free in may_differ)]
    if refused:
        lines = [f"  {key}: {started.get(key, '(absent)')} then, {now.get(key, '(absent)')} now" for key in refused]
        raise ValueError(
            "\n".join([f"the run in {path.parent} was started with other settings:", *lines])
            + f"\nresume it with the settings in {path}, or start a run in another folder"
        )


def record_launch(path: Path) -> None:
    """Append this launch to run.json; warn if versions changed since the last one."""
    launches, then, launch = [], None, describe_launch()
    if path.exists():
        with reading(path, "remove it, and resume"):
            launches = json.loads(path.read_text(encoding="utf-8"))["launches"]
            then = launches[-1]["versions"]
    if then not in (None, launch["versions"]):
        logger.warning("versions changed since the last launch: %s then, %s now", then, launch["versions"])
    replace_text(path, json.dumps({"launches": [*launches, launch]}, indent=1))


def describe_launch() -> dict[str, object]:
    """Time, command, number of ranks, versions and git state of this process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "world_size": rank_and_world()[1],
        "versions": versions(),
        "platform": platform.platform(),
        "git": git_state(),
    }


def versions() -> dict[str, str]:
    return {"nestling": __version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def git_state() -> dict[str, object] | None:
    """The commit of the checkout that nestling runs from, and whether tracked files differ; None without a checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        top = Path(git(package, "rev-parse", "--show-toplevel"))
        if top / "src" / "nestling" != package:  # an environment inside another repository
            return None
        dirty = git(package, "status", "--porcelain", "--untracked-files=no") != ""
        return {"commit": git(package, "rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return result.stdout.strip()
