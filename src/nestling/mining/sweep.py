"""A table that compares filter settings: how many negatives each leaves, how hard they are, how many are false."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.relevance_judgements import FalseNegativeCounts, RelevanceJudgements
from nestling.mining.result import finite_mean
from nestling.mining.retrieved import Scores
from nestling.mining.rules import Positives, drop_high_scores, drop_ranks
from nestling.mining.selection import CandidateFilter, Thresholds, draw
from nestling.retrieval.metrics import Integers

# The grid, around the values that NV-Retriever (arXiv 2407.15831) tries.
FIRST_RANKS = (2, 3, 6, 11, 21)
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2)
SCORE_RATIOS = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
PROBABILITIES = (0.9, 0.7, 0.5, 0.3, 0.1)
QUANTILES = (0.9, 0.75, 0.5, 0.25)
NO_THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class SweepSetting:
    """A setting of the filters.

    Args:
        name: Its name in the table.
        thresholds: Thresholds of the scorer's scores.
        rank_from: Candidates of better ranks are dropped.
        relevant: Candidates to which the judge gives a higher probability are dropped; None: the judge drops none.
    """

    name: str
    thresholds: Thresholds = NO_THRESHOLDS
    rank_from: int = 1
    relevant: float | None = None


@dataclass(frozen=True)
class SweepOutcome:
    """What a setting leaves: a line of the table.

    Attributes:
        setting: The name of the setting.
        remaining: Candidates that are not dropped.
        short: Queries that get fewer negatives than wanted.
        score: Mean score of the negatives.
        gap: Mean of how far the negatives are below the lowest positive of their query.
        counts: The number of negatives; with relevance judgements also how many are false.
    """

    setting: str
    remaining: int
    short: int
    score: float
    gap: float
    counts: FalseNegativeCounts


def settings(naive: Scores, *, cosines: bool, judged: bool) -> Iterator[SweepSetting]:
    """The settings to compare; the values of `max_score` are quantiles of the naive negatives' scores.

    Args:
        naive: Scores of the naive negatives, those that score highest, without thresholds.
        cosines: Whether scores are cosines, since absolute margins mean nothing for others.
        judged: Whether a judge gave probabilities.
    """
    yield SweepSetting("naive")
    for rank in FIRST_RANKS:
        yield SweepSetting(f"rank from {rank}", rank_from=rank)
    known = naive[~np.isnan(naive)]
    for value in np.unique(np.round(np.quantile(known, QUANTILES), 3))[::-1].tolist() if len(known) else []:
        yield SweepSetting(f"max score {value:g}", Thresholds(max_score=value))
    for value in MARGINS if cosines else ():
        yield SweepSetting(f"margin {value:g}", Thresholds(absolute_margin=value))
    for value in SCORE_RATIOS:
        yield SweepSetting(f"ratio {value:g}", Thresholds(max_score_ratio=value))
    for value in PROBABILITIES if judged else ():
        yield SweepSetting(f"judge {value:g}", relevant=value)


def try_settings(
    candidates: Candidates,
    positives: Positives,
    candidate_filter: CandidateFilter,
    scorer: str,
    *,
    negatives: int,
    cosines: bool,
    probabilities: Scores | None = None,
    judgements: RelevanceJudgements | None = None,
) -> Iterator[SweepOutcome]:
    """The outcome of every setting of the grid. Negatives are the remaining candidates that score highest.

    Args:
        candidates: The candidates.
        positives: The known positives.
        candidate_filter: What is dropped whatever the setting; it is not changed.
        scorer: The scorer whose scores thresholds use.
        negatives: How many a query should get.
        cosines: Whether its scores are cosines.
        probabilities: [C] float32, of the judge; NaN for candidates that it has not read, which its settings drop.
        judgements: Relevance judgements that count false negatives.
    """
    queries, scores = candidates.queries, candidates.scores[scorer]
    lowest = positives.lowest(scorer)
    naive = draw(candidates.lists, scores, candidate_filter.remaining, negatives)
    for each in settings(scores[naive.values], cosines=cosines, judged=probabilities is not None):
        own = candidate_filter.copy()
        drop_ranks(own, candidates, each.rank_from, None)
        drop_high_scores(own, candidates, positives, scorer, each.thresholds)
        if each.relevant is not None and probabilities is not None:
            own.drop("judge", ~(probabilities <= each.relevant))
        drawn = draw(candidates.lists, scores, own.remaining, negatives)
        yield SweepOutcome(
            setting=each.name,
            remaining=int(own.remaining.sum()),
            short=len(candidates.lists) - int((drawn.counts >= negatives).sum()),
            score=finite_mean(scores[drawn.values]),
            gap=finite_mean(lowest[queries[drawn.values]] - scores[drawn.values]),
            counts=count_false(judgements, candidates, drawn.values),
        )


def count_false(
    judgements: RelevanceJudgements | None, candidates: Candidates, negatives: Integers
) -> FalseNegativeCounts:
    return FalseNegativeCounts(len(negatives)) if judgements is None else judgements.count(candidates, negatives)


def table_lines(outcomes: Sequence[SweepOutcome], *, judged: bool) -> Iterator[str]:
    """The table as lines of text.

    With judgements, "% of all" is of the negatives of judged queries, "% judged" of the negatives that are judged.
    """
    heading = f"{'':16} {'left':>11} {'negatives':>11} {'short':>8} {'score':>8} {'gap':>8}"
    yield heading + (f" {'false':>8} {'% of all':>9} {'% judged':>9}" if judged else "")
    for each in outcomes:
        counts = each.counts
        line = f"{each.setting:16} {each.remaining:11,} {counts.total:11,} {each.short:8,}"
        line += f" {each.score:8.4f} {each.gap:8.4f}"
        fractions = f" {counts.false:8,} {counts.false_fraction:9.2%} {counts.false_fraction_of_judged:9.2%}"
        yield line + (fractions if judged else "")
