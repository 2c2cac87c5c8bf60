"""What each of many thresholds would keep: how many negatives, how hard, and how many of them are false."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.judgements import Judgements, Measured
from nestling.mining.mined import Positives, drop_high, drop_ranks, finite_mean
from nestling.mining.retrieved import Scores
from nestling.mining.selection import Thresholds, Verdicts, draw
from nestling.retrieval.metrics import Integers

SHIFTS = (2, 3, 6, 11, 21)
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2)
PERCENTS = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
PROBABILITIES = (0.9, 0.7, 0.5, 0.3, 0.1)
QUANTILES = (0.9, 0.75, 0.5, 0.25)
NO_THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Setting:
    """One line of the table.

    Args:
        name: What it is called.
        thresholds: Of the scorer's scores.
        rank_from: The best rank that is kept.
        relevant: The probability above which the judge drops.
    """

    name: str
    thresholds: Thresholds = NO_THRESHOLDS
    rank_from: int = 1
    relevant: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a setting does.

    Attributes:
        setting: Its name.
        left: Candidates that it leaves.
        short: Queries that get fewer negatives than wanted.
        score: Mean score of the negatives.
        gap: Mean of how far they are below the lowest positive of their query.
        measured: Their number, and how many are false; without judgements nothing is judged.
    """

    setting: str
    left: int
    short: int
    score: float
    gap: float
    measured: Measured


def settings(naive: Scores, *, cosines: bool, judged: bool) -> Iterator[Setting]:
    """A grid around what is published (NV-Retriever), and absolute thresholds at quantiles of the naive negatives.

    Args:
        naive: Scores of the negatives without any rule.
        cosines: Whether margins between scores mean something.
        judged: Whether a judge gave probabilities.
    """
    yield Setting("naive")
    for rank in SHIFTS:
        yield Setting(f"rank from {rank}", rank_from=rank)
    known = naive[~np.isnan(naive)]
    for value in np.unique(np.round(np.quantile(known, QUANTILES), 3))[::-1].tolist() if len(known) else []:
        yield Setting(f"max score {value:g}", Thresholds(max_score=value))
    for value in MARGINS if cosines else ():
        yield Setting(f"margin {value:g}", Thresholds(absolute_margin=value))
    for value in PERCENTS:
        yield Setting(f"percent {value:g}", Thresholds(percent=value))
    for value in PROBABILITIES if judged else ():
        yield Setting(f"judge {value:g}", relevant=value)


def try_settings(
    candidates: Candidates,
    positives: Positives,
    verdicts: Verdicts,
    scorer: str,
    *,
    negatives: int,
    cosines: bool,
    probabilities: Scores | None = None,
    judgements: Judgements | None = None,
) -> Iterator[Outcome]:
    """The outcome of every setting of the grid, negatives being those that score highest.

    Args:
        candidates: What was found.
        positives: What is relevant.
        verdicts: Rules that every setting goes on from.
        scorer: Whose scores thresholds use.
        negatives: How many a query should get.
        cosines: Whether margins between its scores mean something.
        probabilities: [C] of the judge, NaN for what it has not read; it drops what it has not read.
        judgements: Measure false negatives.
    """
    queries, scores = candidates.queries, candidates.scores[scorer]
    lowest = positives.lowest(scorer)
    naive = draw(candidates.lists, scores, verdicts.left, negatives)
    for each in settings(scores[naive.values], cosines=cosines, judged=probabilities is not None):
        own = verdicts.copy()
        drop_ranks(own, candidates, each.rank_from, None)
        drop_high(own, candidates, positives, scorer, each.thresholds)
        if each.relevant is not None and probabilities is not None:
            own.drop("judge", ~(probabilities <= each.relevant))
        chosen = draw(candidates.lists, scores, own.left, negatives)
        gap = finite_mean(lowest[queries[chosen.values]] - scores[chosen.values])
        measured = measure(judgements, candidates, chosen.values)
        short = len(candidates.lists) - int((chosen.counts >= negatives).sum())
        yield Outcome(each.name, int(own.left.sum()), short, finite_mean(scores[chosen.values]), gap, measured)


def measure(judgements: Judgements | None, candidates: Candidates, chosen: Integers) -> Measured:
    return Measured(len(chosen)) if judgements is None else judgements.measure(candidates, chosen)


def table_lines(outcomes: Sequence[Outcome], *, judged: bool) -> Iterator[str]:
    """The outcomes for people; shares of false negatives are of those of judged queries, and of those judged."""
    heading = f"{'':16} {'left':>11} {'negatives':>11} {'short':>8} {'score':>8} {'gap':>8}"
    yield heading + (f" {'false':>8} {'% of all':>9} {'% judged':>9}" if judged else "")
    for each in outcomes:
        found = each.measured
        line = f"{each.setting:16} {each.left:11,} {found.total:11,} {each.short:8,} {each.score:8.4f} {each.gap:8.4f}"
        fractions = f" {found.false:8,} {found.false_fraction:9.2%} {found.false_fraction_of_judged:9.2%}"
        yield line + (fractions if judged else "")
