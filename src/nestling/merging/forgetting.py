"""A plot of what fine-tuning gains in its domain and loses outside it, between the base and the merged model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.config import require
from nestling.files import replacing

PLOT_FORMATS = (".png", ".svg", ".pdf")


def require_plot_format(path: Path) -> None:
    """Raise ValueError unless the name ends in a format of `PLOT_FORMATS`."""
    require(path.suffix in PLOT_FORMATS, f"plot: {path}: expected a name in {', '.join(PLOT_FORMATS)}")


def plot_alphas(path: Path, results: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Plot nDCG@10 over alpha, one curve for each kind of data.

    Args:
        path: The file to write.
        results: For each alpha a mapping of "alpha" and of each kind, with its nDCG@10, to numbers.
        kinds: Kinds of data, such as "dev" and "other".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(results, key=lambda each: float(each["alpha"]))
    alphas = [each["alpha"] for each in ordered]
    for kind in kinds:
        axes.plot(alphas, [each[kind] for each in ordered], marker="o", label=kind)
    axes.set(xlabel="alpha (0: the base, 1: the merge)", ylabel="nDCG@10")
    axes.legend()
    axes.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=150)
