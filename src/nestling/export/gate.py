"""What the gates of embedders and rerankers have in common; an exported directory passes one before it gets its name.

A gate loads the written files as their users do, with transformers and with sentence-transformers, on the CPU, and
compares the outputs with those of the model in memory, all computed in float32. The weights are loaded in the type of
the files, whose pages stay the system's, and each module's are cast while it runs: beside the model in memory there is
no room for its weights in float32. Merging and reloading must be exact; what rounding costs is reported and never fails
a directory (`nestling.export.probe_outputs`).

It runs in the process that exports. One of its own would import all libraries again, which took most of the time
between the last step and the exit of a small run, and would find nothing more:

- Every `from_pretrained` makes a model and a tokenizer of its own from the files. None is shared with the trainer's, no
  hub is asked (`local_files_only`), nothing is put onto a GPU.
- Nestling patches no library. It registers attention functions under names of its own, and a directory that names one,
  which no user could load, is refused.
- transformers looks at a process group only under FSDP and ZeRO-3; those models are exported by scripts/export.py, in a
  process outside of the launch.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from nestling.console import say, working
from nestling.export.probe_outputs import ProbeOutputs
from nestling.export.serving_files import BaseFiles
from nestling.models.attention import FLOAT32, VARLEN
from nestling.models.remote_code import is_trusted
from nestling.models.rounded_weights import BLOCK
from nestling.models.weights import StoredWeights

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Dtype = torch.dtype | Literal["auto"]


class ExportError(ValueError):
    """An exported directory does not reproduce the model that it was made from."""


@dataclass
class WeightChanges:
    """How written weights differ from those of the base.

    Args:
        tensors: Weights that both have.
        changed: How many of them differ.
        largest: Largest absolute difference of one weight.
    """

    tensors: int = 0
    changed: int = 0
    largest: float = 0.0

    def count(self, change: float) -> None:
        """Add a tensor by its largest change."""
        self.tensors += 1
        self.changed += change != 0
        self.largest = max(self.largest, change)  # NaN, for another shape, leaves it as it is

    def __str__(self) -> str:
        return f"against the base: {self.changed} of {self.tensors} tensors changed, by up to {self.largest:.3g}"


class GateReport(Protocol):
    """What a gate measured.

    Attributes:
        changes: Against the base.
        failures: What is wrong, empty when the directory passed.
        warnings: What the user should know, and what to do.
    """

    changes: WeightChanges
    failures: list[str]
    warnings: list[str]

    def lines(self) -> list[str]:
        """One line a comparison."""


def run_checks(checks: Mapping[str, Callable[[], None]], report: GateReport) -> None:
    """Run each, said on stderr by its name; whatever a broken directory makes a library raise is a failure."""
    for name, check in checks.items():
        say(f"checking the exported files: {name}")
        try:
            with working(f"checking the exported files: {name}"), libraries_silenced():
                check()
        except Exception as error:
            report.failures.append(f"{name}: {type(error).__name__}: {error}")


@contextmanager
def libraries_silenced() -> Iterator[None]:
    """No progress bars, notes and warnings of loading: what matters in them is compared."""
    bars, disabled = is_progress_bar_enabled(), logging.root.manager.disable
    disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        if bars:
            enable_progress_bar()


def require_passed(report: GateReport, directory: Path, *, allow_failed: bool = False) -> None:
    """Raise ExportError if the gate found anything wrong, or log it where that is allowed."""
    for line in report.warnings:
        logger.warning("%s", line)
    if not report.failures:
        return
    failures = "\n".join(f"- {line}" for line in report.failures)
    figures = "\n".join(f"  {line}" for line in report.lines())
    message = f"{directory} failed the parity gate:\n{failures}\nall figures:\n{figures}"
    if not allow_failed:
        raise ExportError(
            f"{message}\nno directory is left, and checkpoints are untouched; --allow_failed_gate true of "
            "scripts/export.py and scripts/merge.py writes one all the same, and says so in its card"
        )
    logger.warning("%s\nit is written all the same, and its card says so", message)


def verdict(report: GateReport) -> str:
    """For a line of output."""
    return "failed the parity gate, and was written all the same" if report.failures else "passed the parity gate"


def rounding_warning(dtype: str, cost: str) -> str:
    """What to do about merged weights that lose too much when they are rounded; `cost` says how much that is."""
    return (
        f"rounding to {dtype} {cost}; write the weights in float32 (--export_dtype float32 of a recipe, --dtype "
        "float32 of scripts/export.py and scripts/merge.py), or serve the base with adapter/"
    )


def in_stored_type(load: Callable[[Dtype], Model]) -> Model:
    """What `load` gives for the type of the files, or for float32 where buffers would be rounded, as Gemma's scale."""
    model = load("auto")
    rounded = any(each.is_floating_point() and each.dtype.itemsize < 4 for each in model.buffers())
    return load(torch.float32) if rounded else model


def load_model(model_class: Any, directory: Path, report: GateReport, dtype: Dtype = "auto") -> Any:
    """A model by one of transformers' Auto classes, on the CPU; what it lacks is a failure."""
    model, loading = model_class.from_pretrained(
        directory,
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=is_trusted(directory),
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        report.failures.append(f"transformers: weights are missing: {', '.join(missing[:5])}")
    attention = model.config._attn_implementation
    if attention in (FLOAT32, VARLEN):  # registered in this process, perhaps, and in none of a user's
        report.failures.append(f"transformers: it has no attention {attention!r}, which config.json names")
    return model


def compare_with_base(directory: Path, base: BaseFiles, prefix: str, outputs: ProbeOutputs, report: GateReport) -> None:
    """Written weights must differ from the base's in the same dtype: a merge without adapters would pass all else.

    Args:
        directory: The exported directory.
        base: The model before training.
        prefix: What weight names may begin with, such as "model."; compared without it.
        outputs: What the model gives for the probes.
        report: Takes the changes, and where there are none a failure, or a warning if rounding alone took them.
    """
    written, stored = StoredWeights(str(directory)), StoredWeights(base.source, base.subfolder)
    changes = report.changes
    for name, before in names_in_base(written, stored, base.source, prefix).items():
        changes.count(largest_change(written[name], stored[before]))
    if changes.tensors < len(written) / 2:
        report.warnings.append(
            f"transformers has other names for most weights of {base.source} than its files; {changes.tensors} of "
            f"{len(written)} were compared with it"
        )
    elif not changes.changed and (outputs.base is None or outputs.unlearnt):
        report.failures.append(f"base: all {changes.tensors} tensors equal those of {base.source}; nothing was learnt")
    elif not changes.changed:
        report.warnings.append(f"rounding has made all {changes.tensors} tensors those of {base.source} again")


def names_in_base(names: Iterable[str], stored: Iterable[str], source: str, prefix: str) -> dict[str, str]:
    """Of names of a model's weights, those that its base has too, and how they stand there.

    Args:
        names: Of the weights.
        stored: Of the base's weights.
        source: The base.
        prefix: What names may begin with, such as "model."; compared without it.

    Raises:
        ValueError: There is none.
    """
    bare = {name.removeprefix(prefix): name for name in stored}
    found = {name: bare[name.removeprefix(prefix)] for name in names if name.removeprefix(prefix) in bare}
    if not found:
        raise ValueError(f"no weight of {source} has the name of one of its model's: nothing was loaded from it")
    return found


def largest_change(now: Tensor, then: Tensor) -> float:
    """Largest absolute difference from `then` rounded like `now`; NaN, which counts as a change, for another shape."""
    if now.shape != then.shape:
        return math.nan
    pieces = zip(now.flatten().split(BLOCK), then.flatten().split(BLOCK), strict=True)  # views, and few casts at a time
    changes = [torch.dist(a.float(), b.to(a.dtype).float(), p=math.inf).item() for a, b in pieces if a.numel()]
    return max(changes, default=0.0) if not any(map(math.isnan, changes)) else math.nan
