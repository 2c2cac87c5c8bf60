"""Search for the weights of a merge that score best: each model alone, a greedy soup, then one weight at a time.

Greedy soup: Wortsman et al., arXiv 2203.05482. The score is any function of the weights. No weights are tried twice,
and every trial is kept, so that a table can show all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

# One weight for each model; they sum to 1 up to rounding.
WeightVector = tuple[float, ...]

# Decimal places to which weights are rounded: a finer difference does not change a model noticeably.
DIGITS = 4


@dataclass(frozen=True)
class Trial:
    """A merge that was tried.

    Attributes:
        weights: Its weights.
        score: Higher is better.
        stage: Stage of the search that tried it, for tables.
    """

    weights: WeightVector
    score: float
    stage: str


@dataclass
class Search:
    """A search over the weights of a merge.

    Args:
        count: Number of models.
        measure: Gives the score of the merge with some weights.
        budget: Most trials, those of each model alone included.

    Attributes:
        trials: Trials so far, in order.
    """

    count: int
    measure: Callable[[WeightVector], float]
    budget: int
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """The trial with the highest score; of equal ones the first."""
        return max(self.trials, key=lambda trial: trial.score)

    def run(self, step: float) -> Trial:
        """Run all three stages, the last with this first step, and return the best trial."""
        for weights in single_models(self.count):
            self._try(weights, "an input")
        self.greedy_soup()
        self.coordinate_search(step)
        return self.best

    def greedy_soup(self) -> None:
        """Add the models to an equal mean, in the order of their scores; each stays if it raises the mean's score."""
        score_alone = {trial.weights: trial.score for trial in self.trials}
        scores = [score_alone[weights] for weights in single_models(self.count)]
        order = sorted(range(self.count), key=lambda i: -scores[i])
        members = order[:1]
        highest = scores[members[0]]
        for model in order[1:]:
            trial = self._try(mean_of(self.count, [*members, model]), "greedy soup")
            if trial is not None and trial.score > highest:
                members, highest = [*members, model], trial.score

    def coordinate_search(self, step: float) -> None:
        """From the best trial move one weight at a time by `step`, up or down; halve it when no move helps."""
        while step >= 10**-DIGITS and len(self.trials) < self.budget:
            start = self.best
            for i in range(self.count):
                for change in (step, -step):
                    self._try(with_change(self.best.weights, i, change), "one weight moved")
            if self.best == start:
                step /= 2

    def _try(self, weights: WeightVector, stage: str) -> Trial | None:
        """The trial of these weights, measured unless it was before; None when the budget is spent."""
        for trial in self.trials:
            if trial.weights == weights:
                return trial
        if len(self.trials) >= self.budget:
            return None
        self.trials.append(Trial(weights, self.measure(weights), stage))
        return self.trials[-1]


def single_models(count: int) -> list[WeightVector]:
    """For each model the weights that are 1 for it and 0 for the others."""
    return [mean_of(count, [i]) for i in range(count)]


def mean_of(count: int, members: list[int]) -> WeightVector:
    """Equal weights for some of the models, 0 for the others."""
    return normalised([float(i in members) for i in range(count)])


def with_change(weights: WeightVector, index: int, change: float) -> WeightVector:
    """Weights with a change added to one of them, which does not go below 0; then normalised."""
    values = list(weights)
    values[index] = max(0.0, values[index] + change)
    return normalised(values)


def normalised(values: list[float]) -> WeightVector:
    """Values divided by their sum and rounded; all 0 stay 0."""
    total = sum(values) or 1.0
    return tuple(round(value / total, DIGITS) for value in values)
