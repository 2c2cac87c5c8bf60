"""Packages that a machine lacks, and wheels of them from a folder. Nothing but Python's own library is used here."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# Nestling's dependencies, and theirs, by the name that is imported: pure Python, so that one wheel fits every machine.
# torch, transformers and others with compiled code are expected there.
PURE = {
    "accelerate": "accelerate",
    "bm25s": "bm25s",
    "datasets": "datasets",
    "dill": "dill",
    "docstring-parser": "docstring_parser",
    "jinja2": "jinja2",
    "jsonargparse": "jsonargparse",
    "multiprocess": "multiprocess",
    "peft": "peft",
    "sentence-transformers": "sentence_transformers",
    "snowballstemmer": "snowballstemmer",
    "tabulate": "tabulate",
    "typeshed-client": "typeshed_client",
}


def missing_packages() -> list[str]:
    """Names of the packages in PURE that cannot be imported."""
    return [package for package, module in PURE.items() if find_spec(module) is None]


def how_to_collect(missing: Sequence[str], folder: str) -> str:
    """The command that downloads their wheels for this version of Python, to be run where there is a network."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = f"--no-deps --only-binary=:all: --python-version {python} -c constraints.txt --dest {folder}"
    return f"pip download {options} {' '.join(missing)}"


def install_wheels(folder: Path, target: Path) -> None:
    """Install all wheels of a folder into another.

    Raises:
        ValueError: There are none, or pip refuses them.
    """
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"--wheels {folder}: no wheels (*.whl) there")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), *wheels]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--wheels {folder}: pip could not install them: {done.stderr.strip().splitlines()[-1:]}")
