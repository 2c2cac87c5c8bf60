"""The report of the comparison of a server with a directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nestling.console import table
from nestling.retrieval.metrics import Floats
from nestling.serving.advice import ADVICE

# An explanation with more errors is chosen only if its distance is smaller by this factor.
NEARER = 3
# Exit status where only texts beyond the limit differ, which a client that cuts texts itself never sends.
BEYOND_LIMIT = 3


@dataclass(frozen=True)
class Finding:
    """A difference between a server and the directory.

    Args:
        aspect: Aspect in which they differ: EOS, prompt, padding, pooling, normalisation, dimension, …
        what: Description, with figures.
        advice: How to correct it.
        beyond_limit: Whether it concerns only texts beyond the directory's limit.
    """

    aspect: str
    what: str
    advice: str
    beyond_limit: bool = False

    def __str__(self) -> str:
        return f"{self.aspect}: {self.what}\n  {self.advice}"


@dataclass
class ServerReport:
    """Result of a comparison.

    Args:
        subject: Lines about the directory and the server.
        headers: Headers of the table.
        rows: Rows of the table, one for each probe.
        notes: Observations that are not errors.
        findings: Differences; empty if the server agrees with the directory.
    """

    subject: Sequence[str]
    headers: Sequence[str]
    rows: list[list[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status of the command: 0 where they agree, BEYOND_LIMIT where they do up to the limit, else 1."""
        if not self.findings:
            return 0
        return BEYOND_LIMIT if all(finding.beyond_limit for finding in self.findings) else 1

    def __str__(self) -> str:
        differs = "fits up to the limit, differs beyond it" if self.status == BEYOND_LIMIT else "differs"
        verdict = [f"\n{differs}:\n{finding}" for finding in self.findings[:1]]
        verdict += [str(finding) for finding in self.findings[1:]]
        notes = [f"note: {note}" for note in self.notes]
        shown = table(self.headers, self.rows, digits=6)
        return "\n".join([*self.subject, "", shown, "", *notes, *(verdict or ["fits"])])


def simplest_explanation(errors: Sequence[int], distances: Sequence[float], noise: float) -> int:
    """Index of the explanation with the fewest errors among those whose distance is close to the smallest.

    Args:
        errors: Number of errors of the server that each explanation assumes.
        distances: Distance between the answers that each explanation predicts and those of the server.
        noise: Distances that differ by less are considered equal.
    """
    bound = NEARER * min(distances) + noise
    near = [i for i, distance in enumerate(distances) if distance <= bound]
    return min(near, key=lambda i: (errors[i], distances[i]))


def nan_findings(served: Floats) -> list[Finding]:
    """Whether all answers are finite."""
    invalid = int((~np.isfinite(served)).any(axis=-1).sum())
    return [Finding("NaN", f"{invalid} of {len(served)} answers hold NaN or nothing", ADVICE["nan"])] if invalid else []
