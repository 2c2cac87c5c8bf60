"""The gate that an exported directory passes before it gets its name: how it is run, and what every gate looks at.

It runs in a process of its own, so that nothing of the trainer (its tokenizer, patched modules, distributed setting)
can make a broken directory look sound.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

import nestling
from nestling.models.weights import StoredWeights

# Settings of a distributed launch, which would make the gate's process wait for ranks that never come.
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
    "PET_",
)


class ExportError(ValueError):
    """An exported directory does not reproduce the model that it was made from."""


class Report(Protocol):
    """What a gate measured.

    Attributes:
        tensors: Weights that the base has as well.
        changed: How many of them differ from the base.
        largest_change: Largest absolute difference of one weight.
        failures: What is wrong, empty when the directory passed.
    """

    tensors: int
    changed: int
    largest_change: float
    failures: list[str]

    def lines(self) -> list[str]:
        """One line a comparison."""


def run_gate(module: str, directory: Path, save: Callable[[Path], None]) -> dict[str, Any]:
    """Run `gate_process` of a module in a fresh process, on the CPU: what it writes as report.json.

    Args:
        module: Its function `gate_process` is given the arguments `directory` and a work folder.
        directory: The exported directory.
        save: Leaves in the work folder what is expected of it.

    Raises:
        ExportError: The process ended without a report.
    """
    with tempfile.TemporaryDirectory(prefix="nestling-gate-") as name:
        folder = Path(name)
        save(folder)
        code = f"from {module} import gate_process; gate_process()"
        process = subprocess.run(
            [sys.executable, "-c", code, str(directory), name],
            env=gate_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        result = folder / "report.json"
        if process.returncode or not result.exists():
            raise ExportError(
                f"the parity gate's process ended with status {process.returncode} before it could compare anything"
                f"{' (killed; out of memory?)' if process.returncode == -9 else ''}:\n{process.stderr[-3000:]}"
            )
        values: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return values


def require_passed(report: Report, directory: Path) -> None:
    """Raise ExportError if the gate found anything wrong."""
    if report.failures:
        found = "\n".join(f"- {line}" for line in report.failures)
        figures = "\n".join(f"  {line}" for line in report.lines())
        raise ExportError(
            f"{directory} failed the parity gate:\n{found}\nall figures:\n{figures}\n"
            "nothing is published; checkpoints are untouched, and scripts/export.py can export one again"
        )


def gate_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of the gate's process: no distributed launch, no GPU, no hub."""
    return alone(parent) | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def alone(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that belongs to no distributed launch."""
    kept = {name: value for name, value in parent.items() if not name.startswith(LAUNCHER_VARIABLES)}
    source = str(Path(nestling.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, kept.get("PYTHONPATH")]))
    return kept | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}


def compare_with_base(directory: Path, base: str, subfolder: str, prefix: str, report: Report) -> None:
    """The weights are not those of the base, rounded alike: a merge that lost the training would pass all else.

    Args:
        directory: The exported directory.
        base: Directory or hub id of the model before training.
        subfolder: Where its transformer lies.
        prefix: Of weight names, in either model, with or without.
        report: Is told.
    """
    written, stored = StoredWeights(str(directory)), StoredWeights(base, subfolder)
    bare = {name.removeprefix(prefix): name for name in stored}
    for name in written:
        before = bare.get(name.removeprefix(prefix))
        if before is None:
            continue
        report.tensors += 1
        now, then = written[name], stored[before]
        then = then.to(now.dtype)
        if now.shape != then.shape or not torch.equal(now, then):
            report.changed += 1
            if now.shape == then.shape:
                report.largest_change = max(report.largest_change, (now.float() - then.float()).abs().max().item())
    if not report.tensors:
        report.failures.append(f"base: no weight of {base} has the name of a written one")
    elif not report.changed:
        report.failures.append(f"base: all {report.tensors} tensors equal those of {base}; nothing was learnt")


def run_checks(checks: Mapping[str, Callable[[], None]], report: Report) -> None:
    """Run each; whatever a broken directory makes a library raise is a finding."""
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            report.failures.append(f"{name}: {type(error).__name__}: {error}")
