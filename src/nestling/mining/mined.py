"""From what retrievers found to hard negatives: scores, rules, a judge, a draw. Everything here is a pure function.

Shapes: Q queries, C candidates and n positives of all queries together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.lists import Lists, Mask, places_in_lists
from nestling.mining.pool import Pool, near_identities
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Scores
from nestling.mining.selection import (
    Similarities,
    Thresholds,
    Verdicts,
    closest,
    lowest_positive,
    outside,
    repeats,
    strongest,
    too_high,
)
from nestling.records.words import folded_text_id
from nestling.retrieval.metrics import Integers

KNOWN = "a positive of the query"
EQUAL = "equal to the query but for case, punctuation and space"
NEAR = "equal to a positive but for case, punctuation and space"
REPEATED = "equal to a better candidate but for case, punctuation and space"


@dataclass(frozen=True)
class Positives:
    """What is relevant to each query.

    Attributes:
        lists: n documents of the pool.
        scores: By each scorer, [n] float32.
        trusted: [n] bool; those that a consistency filter doubts are no longer positives, but no negatives either.
    """

    lists: Lists
    scores: Mapping[str, Scores]
    trusted: Mask

    def lowest(self, scorer: str) -> Scores:
        """[Q] float32, the lowest score of each query's trusted positives; NaN where there is none."""
        return lowest_positive(np.where(self.trusted, self.scores[scorer], np.nan).astype(np.float32), self.lists)


@dataclass(frozen=True)
class Mined:
    """What came out for Q queries.

    Attributes:
        query_set: The queries.
        pool: The documents.
        positives: What was relevant beforehand.
        candidates: What was found.
        verdicts: Why candidates were dropped.
        scorer: By whose scores negatives are ordered.
        negatives: For each query the candidates that became negatives, as positions in C, best first.
        relabelled: For each query the candidates that became positives.
    """

    query_set: QuerySet
    pool: Pool
    positives: Positives
    candidates: Candidates
    verdicts: Verdicts
    scorer: str
    negatives: Lists
    relabelled: Lists


def known_rows(query_set: QuerySet, pool: Pool) -> Lists:
    """The known positives of each query as documents of the pool."""
    rows = pool.find(query_set.known.values)
    assert (rows >= 0).all()
    return Lists(query_set.known.offsets, rows)


def with_ensemble(candidates: Candidates, positives: Positives, members: Sequence[str]) -> tuple[Candidates, Positives]:
    """The same with scores of an "ensemble": the mean of its members' standard scores, in float32.

    A member's standard scores have mean 0 and standard deviation 1 over all candidates and positives.
    """
    both = [np.concatenate([candidates.scores[each], positives.scores[each]]).astype(np.float64) for each in members]
    spread = [max(float(each.std()), np.finfo(np.float32).eps) for each in both]
    standard = [(each - each.mean()) / deviation for each, deviation in zip(both, spread, strict=True)]
    scores = np.mean(standard, axis=0).astype(np.float32)
    own, of_positives = np.split(scores, [len(candidates)])
    return (
        candidates.with_scores("ensemble", own),
        replace(positives, scores={**positives.scores, "ensemble": of_positives}),
    )


def drop_copies(verdicts: Verdicts, query_set: QuerySet, pool: Pool, positives: Lists, candidates: Candidates) -> None:
    """Drop positives of the query, what equals it or a positive of it, and what repeats a better candidate."""
    queries, rows = candidates.queries, candidates.rows
    verdicts.drop(KNOWN, positives.holds(queries, rows))
    own = np.array([folded_text_id(text) for text in query_set.texts], dtype=np.int64)
    parts = [near_identities(pool, rows), near_identities(pool, positives.values), own]
    # Numbered anew, so that a query and a kind fit into one int64.
    kinds = np.split(
        np.unique(np.concatenate(parts), return_inverse=True)[1], np.cumsum([len(each) for each in parts])[:2]
    )
    verdicts.drop(EQUAL, kinds[0] == kinds[2][queries])
    verdicts.drop(NEAR, Lists(positives.offsets, kinds[1]).holds(queries, kinds[0]))
    verdicts.drop(REPEATED, repeats(queries, kinds[0]))


def drop_ranks(verdicts: Verdicts, candidates: Candidates, first: int, last: int | None) -> None:
    """Drop those whose best rank, known positives counted, is outside first..last."""
    if first > 1 or last is not None:
        name = f"outside ranks {first} to {'the end' if last is None else last}"
        verdicts.drop(name, outside(candidates.best_rank, first, last))


def drop_high(
    verdicts: Verdicts, candidates: Candidates, positives: Positives, scorer: str, thresholds: Thresholds
) -> None:
    """Drop those that score too high, absolutely or beside the lowest positive of their query."""
    of_positive = positives.lowest(scorer)[candidates.queries]
    for name, hit in too_high(candidates.scores[scorer], of_positive, thresholds):
        verdicts.drop(name, hit)


def drop_similar(
    verdicts: Verdicts, candidates: Candidates, positives: Positives, similarities: Similarities, ceiling: float
) -> None:
    """Drop those that are more similar to a positive of their query than the ceiling."""
    left = np.flatnonzero(verdicts.left)
    highest = closest(candidates.rows[left], candidates.queries[left], positives.lists, similarities)
    hit = np.zeros(len(candidates), dtype=bool)
    hit[left] = highest > ceiling
    verdicts.drop(f"more similar to a positive than {ceiling:g}", hit)


def drop_beyond(verdicts: Verdicts, candidates: Candidates, scorer: str, depth: int) -> None:
    """Drop all but the `depth` highest of those left of each query, which is what a judge reads."""
    order = strongest(candidates.queries, candidates.scores[scorer])
    order = order[verdicts.left[order]]
    hit = np.zeros(len(candidates), dtype=bool)
    hit[order] = places_in_lists(candidates.queries[order], len(candidates.lists)) >= depth
    verdicts.drop(f"behind the first {depth} left, which the judge read", hit)


def left_lists(verdicts: Verdicts, candidates: Candidates) -> tuple[Lists, Integers]:
    """The documents left of each query, and their positions in C."""
    left = np.flatnonzero(verdicts.left)
    return Lists.grouped(candidates.queries[left], candidates.rows[left], len(candidates.lists)), left


def hardness(mined: Mined) -> tuple[float, float]:
    """Mean score of the negatives, and the mean of how far they are below the lowest positive of their query."""
    chosen = mined.negatives.values
    scores = mined.candidates.scores[mined.scorer][chosen].astype(np.float64)
    gaps = mined.positives.lowest(mined.scorer)[mined.candidates.queries[chosen]] - scores
    return finite_mean(scores), finite_mean(gaps)


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are known; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def summary_lines(mined: Mined, wanted: int) -> Iterator[str]:
    """What became of the candidates, for people."""
    candidates, total = mined.candidates, max(len(mined.candidates), 1)
    finders = ", ".join(f"{name} found {int((ranks > 0).sum()):,}" for name, ranks in candidates.ranks.items())
    yield f"{len(candidates):,} candidates of {len(mined.query_set):,} queries ({finders})"
    for reason, count in mined.verdicts.counts().items():
        yield f"  dropped {count:>9,} ({count / total:6.1%})  {reason}"
    counts = mined.negatives.counts
    yield f"  left    {int(mined.verdicts.left.sum()):>9,}; {len(mined.negatives.values):,} drawn as negatives"
    short, none = int(((counts < wanted) & (counts > 0)).sum()), int((counts == 0).sum())
    if short or none:
        yield f"  fewer than {wanted} negatives: {short:,} queries; none at all: {none:,} queries"
    mean, gap = hardness(mined)
    yield f"  negatives score {mean:.4f} by {mined.scorer} in the mean, {gap:.4f} below the lowest positive"


def names_of(paths: Sequence[str]) -> list[str]:
    """A short name for each retriever, the last part of a path; with its folder where that says little or is taken."""
    short = [last_parts(path, 1) for path in paths]
    return [
        last_parts(path, 2) if name in ("final", "model", "0_Transformer") or short.count(name) > 1 else name
        for path, name in zip(paths, short, strict=True)
    ]


def last_parts(path: str, count: int) -> str:
    return "/".join(path.rstrip("/").split("/")[-count:])
