"""Which weights of a merge are best on a development set: each input, a greedy soup, then one weight after another.

Greedy soup: Wortsman et al., arXiv 2203.05482. Everything here is a function of a score, whatever it measures; no
weights are tried twice, and every trial is kept, so that a table can show all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

Weights = tuple[float, ...]

# Weights are compared and kept to so many digits: finer ones do not change a model that anyone could tell apart.
DIGITS = 4


@dataclass(frozen=True)
class Trial:
    """A merge that was tried.

    Attributes:
        weights: Of each of k inputs; they sum to 1.
        score: Higher is better.
        stage: What it was tried for.
    """

    weights: Weights
    score: float
    stage: str


@dataclass
class Search:
    """Trials of merges of k inputs.

    Args:
        count: k.
        measure: The score of the merge with some weights.
        budget: Trials at the most, the k inputs themselves among them.

    Attributes:
        trials: Those so far, in order.
    """

    count: int
    measure: Callable[[Weights], float]
    budget: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """The highest score; of equal ones the first."""
        return max(self.trials, key=lambda trial: trial.score)

    def run(self, step: float) -> Trial:
        """All three stages; the best trial."""
        for single in singles(self.count):
            self._try(single, "an input")
        self.greedy()
        self.coordinates(step)
        return self.best

    def greedy(self) -> None:
        """Add the inputs to an even mean, the best first; each stays if the score rises."""
        alone = {trial.weights: trial.score for trial in self.trials}
        order = sorted(range(self.count), key=lambda i: -alone[singles(self.count)[i]])
        chosen = order[:1]
        highest = alone[singles(self.count)[chosen[0]]]
        for each in order[1:]:
            trial = self._try(even(self.count, [*chosen, each]), "greedy soup")
            if trial is not None and trial.score > highest:
                chosen, highest = [*chosen, each], trial.score

    def coordinates(self, step: float) -> None:
        """From the best so far move one weight at a time by `step`, up or down; halve it when no move helps."""
        while step >= 10**-DIGITS and len(self.trials) < self.budget:
            start = self.best
            for i in range(self.count):
                for change in (step, -step):
                    self._try(moved(self.best.weights, i, change), "one weight moved")
            if self.best == start:
                step /= 2

    def _try(self, weights: Weights, stage: str) -> Trial | None:
        """The trial of some weights, from before if there was one; None when the budget is spent."""
        for trial in self.trials:
            if trial.weights == weights:
                return trial
        if len(self.trials) >= self.budget:
            return None
        self.trials.append(Trial(weights, self.measure(weights), stage))
        return self.trials[-1]


def singles(count: int) -> list[Weights]:
    """Each input alone."""
    return [even(count, [i]) for i in range(count)]


def even(count: int, members: list[int]) -> Weights:
    """The mean of some inputs."""
    return normalised([float(i in members) for i in range(count)])


def moved(weights: Weights, index: int, change: float) -> Weights:
    """One weight changed, none below 0, and all made to sum to 1 again."""
    values = list(weights)
    values[index] = max(0.0, values[index] + change)
    return normalised(values)


def normalised(values: list[float]) -> Weights:
    total = sum(values) or 1.0
    return tuple(round(value / total, DIGITS) for value in values)
