"""A page to judge mined negatives by in two minutes: scores, what each rule dropped, the most suspicious ones in full.

One HTML file without scripts, that loads nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader

from nestling.mining.mined import Mined
from nestling.mining.retrieved import Scores
from nestling.report.histograms import histograms
from nestling.retrieval.metrics import Integers

SUSPICIOUS = 25
ORDINARY = 10
# Characters of a text that are shown.
LONGEST = 1200


@dataclass(frozen=True)
class Document:
    """A document as it is shown.

    Args:
        text: Its text, cut if it is long.
        scores: By every scorer that knows it.
        doubt: How far it scores above the lowest positive, for negatives.
    """

    text: str
    scores: str
    doubt: float | None = None


@dataclass(frozen=True)
class Case:
    """A query with what is held relevant and what is not."""

    query: str
    positives: Sequence[Document]
    negatives: Sequence[Document]


def audit_page(mined: Mined, *, scorer: str, title: str, settings: dict[str, object], lines: Sequence[str]) -> str:
    """The page, as HTML.

    Args:
        mined: What was mined.
        scorer: Whose scores say what is suspicious.
        title: Of the page.
        settings: Shown as they are.
        lines: The summary.
    """
    doubts = doubts_of(mined, scorer)
    chosen = mined.negatives.values
    counts = mined.verdicts.counts()
    template = Environment(loader=PackageLoader("nestling", "."), autoescape=True).get_template("mining/audit.html")
    return template.render(
        title=title,
        scorer=scorer,
        settings=settings,
        lines=lines,
        scores=histograms(
            {
                "positives": mined.positives.scores[scorer][mined.positives.trusted],
                "negatives": mined.candidates.scores[scorer][chosen],
            }
        ),
        gaps=histograms({"negative's score - lowest positive's": doubts[chosen]}),
        rules=[(name, count, count / max(len(mined.candidates), 1)) for name, count in counts.items()],
        left=int(mined.verdicts.left.sum()),
        drawn=len(chosen),
        suspicious=[show(mined, query, doubts) for query in most_doubtful(mined, doubts, SUSPICIOUS)],
        ordinary=[show(mined, query, doubts) for query in any_of(mined, ORDINARY)],
    )


def doubts_of(mined: Mined, scorer: str) -> Scores:
    """[C] float32: how far each candidate scores above the lowest positive of its query; NaN where it is not known."""
    doubts: Scores = mined.candidates.scores[scorer] - mined.positives.lowest(scorer)[mined.candidates.queries]
    return doubts


def most_doubtful(mined: Mined, doubts: Scores, count: int) -> list[int]:
    """The queries with the negatives that are most to be doubted, the worst first."""
    chosen = mined.negatives.values
    known = chosen[~np.isnan(doubts[chosen])]
    queries = mined.candidates.queries[known[np.argsort(-doubts[known], kind="stable")]]
    worst: list[int] = queries[np.sort(np.unique(queries, return_index=True)[1])][:count].tolist()
    return worst


def any_of(mined: Mined, count: int) -> list[int]:
    """Some queries that have negatives, always the same for the same queries: those with the smallest identities."""
    filled = np.flatnonzero(mined.negatives.counts > 0)
    chosen: list[int] = filled[np.argsort(mined.query_set.identities[filled], kind="stable")][:count].tolist()
    return chosen


def show(mined: Mined, query: int, doubts: Scores) -> Case:
    """A query with its texts; its negatives in the order of doubt."""
    span = slice(mined.positives.lists.offsets[query], mined.positives.lists.offsets[query + 1])
    places = np.arange(span.start, span.stop)[mined.positives.trusted[span]]
    negatives = mined.negatives[query]
    negatives = negatives[np.argsort(-np.nan_to_num(doubts[negatives], nan=-np.inf), kind="stable")]
    return Case(
        query=shorten(mined.query_set.texts[query]),
        positives=[
            Document(text, scores)
            for text, scores in zip(
                texts_of(mined, mined.positives.lists.values[places]),
                [describe(mined.positives.scores, place) for place in places.tolist()],
                strict=True,
            )
        ],
        negatives=[
            Document(text, describe(mined.candidates.scores, at), None if np.isnan(doubts[at]) else float(doubts[at]))
            for text, at in zip(texts_of(mined, mined.candidates.rows[negatives]), negatives.tolist(), strict=True)
        ],
    )


def texts_of(mined: Mined, rows: Integers) -> list[str]:
    return [shorten(mined.pool.texts[row]) for row in rows.tolist()]


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def describe(scores: Mapping[str, Scores], index: int) -> str:
    """The known scores at an index, for people."""
    return ", ".join(f"{name} {each[index]:.3f}" for name, each in scores.items() if not np.isnan(each[index]))
