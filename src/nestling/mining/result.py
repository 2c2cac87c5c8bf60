"""The result of mining: the negatives of each query, with all that explains them.

Shapes: Q queries, C candidates of all queries together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.lists import Lists
from nestling.mining.pool import Pool
from nestling.mining.query_set import QuerySet
from nestling.mining.rules import Positives
from nestling.mining.selection import CandidateFilter


@dataclass(frozen=True)
class MiningResult:
    """What was mined for Q queries.

    Attributes:
        query_set: The queries.
        pool: The documents.
        positives: The positives that were known before.
        candidates: The documents that retrievers found.
        candidate_filter: Which candidates were dropped, and why.
        scorer: The name of the scorer whose scores order negatives.
        negatives: The negatives of each query, as indices of candidates, best first.
        relabelled: The candidates of each query that became positives, as indices of candidates.
    """

    query_set: QuerySet
    pool: Pool
    positives: Positives
    candidates: Candidates
    candidate_filter: CandidateFilter
    scorer: str
    negatives: Lists
    relabelled: Lists


def hardness(result: MiningResult) -> tuple[float, float]:
    """Mean score of the negatives, and the mean of how far they are below the lowest positive of their query."""
    negatives = result.negatives.values
    scores = result.candidates.scores[result.scorer][negatives].astype(np.float64)
    gaps = result.positives.lowest(result.scorer)[result.candidates.queries[negatives]] - scores
    return finite_mean(scores), finite_mean(gaps)


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def summary_lines(result: MiningResult, wanted: int) -> Iterator[str]:
    """How many candidates each rule dropped and how many negatives came of the rest, as text.

    Args:
        result: What was mined.
        wanted: How many negatives a query should have.
    """
    candidates, total = result.candidates, max(len(result.candidates), 1)
    finders = ", ".join(f"{name} found {int((ranks > 0).sum()):,}" for name, ranks in candidates.ranks.items())
    yield f"{len(candidates):,} candidates of {len(result.query_set):,} queries ({finders})"
    for rule, count in result.candidate_filter.counts().items():
        yield f"  dropped {count:>9,} ({count / total:6.1%})  {rule}"
    counts = result.negatives.counts
    remaining = int(result.candidate_filter.remaining.sum())
    yield f"  left    {remaining:>9,}; {len(result.negatives.values):,} drawn as negatives"
    short, none = int(((counts < wanted) & (counts > 0)).sum()), int((counts == 0).sum())
    if short or none:
        yield f"  fewer than {wanted} negatives: {short:,} queries; none at all: {none:,} queries"
    mean, gap = hardness(result)
    yield f"  negatives score {mean:.4f} by {result.scorer} in the mean, {gap:.4f} below the lowest positive"
