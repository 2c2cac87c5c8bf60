"""A picture of what a model gains in a domain and loses outside it, from its base to itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.config import require

FORMATS = (".png", ".svg", ".pdf")


def require_picture(path: Path) -> None:
    """Raise ValueError for a file that matplotlib does not write."""
    require(path.suffix in FORMATS, f"plot: {path}: expected a name in {', '.join(FORMATS)}")


def plot_alphas(path: Path, found: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Draw nDCG@10 of each kind of data by alpha.

    Args:
        path: The picture.
        found: For each alpha a mapping of "alpha" and each of `kinds` to a number.
        kinds: The curves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(found, key=lambda each: float(each["alpha"]))
    alphas = [each["alpha"] for each in ordered]
    for kind in kinds:
        axes.plot(alphas, [each[kind] for each in ordered], marker="o", label=kind)
    axes.set(xlabel="alpha (0: the base, 1: the merge)", ylabel="nDCG@10")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
