"""Settings of scripts/report.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nestling.config.checks import require

# What of a verdict is a failure.
FailIf = Literal["worse", "not_better"]


@dataclass(frozen=True)
class ReportConfig:
    """Settings of scripts/report.py.

    Args:
        output: HTML file to write; must not exist.
        title: Heading of the page; by default the names of the runs, or of the results.
        runs: Folders of runs of train/embed.py and train/rerank.py, with commas between.
        results: Files of scripts/evaluate.py --output, with commas between; the last is the one after training.
        baseline: Name, without .json, of the result to compare the others with; by default the first of a model.
        choice: File of scripts/choose.py, which says what is to be served.
        fail_if: End with status 3 if the last result is worse than the base or BM25, or not_better than both.
        config_file: File of settings to show, such as a pipeline's.
    """

    output: str
    title: str | None = None
    runs: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    baseline: str | None = None
    choice: str | None = None
    fail_if: FailIf | None = None
    config_file: str | None = None

    def __post_init__(self) -> None:
        require(
            bool(self.runs or self.results), "give --runs, --results or both; without them there is nothing to show"
        )
        names = [Path(path).stem for path in self.results]
        for name in names:
            require(names.count(name) == 1, f"results: two files are called {name}; give each a name of its own")
        require(
            self.baseline is None or self.baseline in names,
            f"baseline is {self.baseline}, expected one of the results: {', '.join(names) or 'there are none'}",
        )
