"""What a check of a server says: probes beside the directory's numbers, and what is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nestling.console import table
from nestling.retrieval.metrics import Floats
from nestling.serving.fixes import FIXES

# A way with more faults is believed if it is so many times nearer to what is served.
NEARER = 3


@dataclass(frozen=True)
class Finding:
    """Something that a server does otherwise than the directory.

    Args:
        aspect: One word for it: EOS, prompt, padding, pooling, normalisation, dimension, …
        what: What it does, with figures.
        fix: What to do about it.
    """

    aspect: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.aspect}: {self.what}\n  {self.fix}"


@dataclass
class Check:
    """What was compared.

    Args:
        subject: What the directory and the server say of themselves, a line each.
        headers: Of the table.
        rows: Of the table, one a probe.
        notes: What is worth knowing and no fault.
        findings: What is wrong; empty when the server fits.
    """

    subject: Sequence[str]
    headers: Sequence[str]
    rows: list[list[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = [f"\ndiffers:\n{finding}" for finding in self.findings[:1]]
        verdict += [str(finding) for finding in self.findings[1:]]
        notes = [f"note: {note}" for note in self.notes]
        shown = table(self.headers, self.rows, digits=6)
        return "\n".join([*self.subject, "", shown, "", *notes, *(verdict or ["fits"])])


def simplest(faults: Sequence[int], distances: Sequence[float], noise: float) -> int:
    """Which of several explanations to believe: the one with fewest faults among those about as near as the nearest.

    Args:
        faults: How many faults each has.
        distances: How far what is served is from it, 0 for the same.
        noise: Distances that differ by less are equal.
    """
    bound = NEARER * min(distances) + noise
    near = [i for i, distance in enumerate(distances) if distance <= bound]
    return min(near, key=lambda i: (faults[i], distances[i]))


def find_nan(served: Floats) -> list[Finding]:
    """Whether all that is served are numbers."""
    wrong = int((~np.isfinite(served)).any(axis=-1).sum())
    return [Finding("NaN", f"{wrong} of {len(served)} answers hold NaN or nothing", FIXES["nan"])] if wrong else []
