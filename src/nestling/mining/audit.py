"""An HTML page for checking mined negatives by eye: score histograms, what each rule dropped, suspicious negatives.

One file without scripts that loads nothing. The excess of a candidate is how far it scores above the lowest positive of
its query: the higher it is, the likelier the candidate is a false negative.

Shapes: C candidates of all queries together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader

from nestling.mining.result import MiningResult
from nestling.mining.retrieved import Scores
from nestling.report.histograms import histograms
from nestling.retrieval.metrics import Integers

# Queries that are shown.
SUSPICIOUS_QUERIES = 25
ORDINARY_QUERIES = 10
# Characters of a text that are shown.
MAX_CHARACTERS = 1200


@dataclass(frozen=True)
class ShownDocument:
    """A document as it is shown.

    Args:
        text: Its text, truncated if it is long.
        scores: Its scores by all scorers that gave one, as text.
        excess: Of a negative, its excess; None for a positive, or where a score is missing.
    """

    text: str
    scores: str
    excess: float | None = None


@dataclass(frozen=True)
class ShownQuery:
    """A query as it is shown, with its positives and negatives."""

    query: str
    positives: Sequence[ShownDocument]
    negatives: Sequence[ShownDocument]


def audit_page(
    result: MiningResult, *, scorer: str, title: str, settings: dict[str, object], lines: Sequence[str]
) -> str:
    """The page, as HTML.

    Args:
        result: What was mined.
        scorer: The scorer whose scores are shown and say what is suspicious.
        title: Title of the page.
        settings: Settings of the run, shown in a table.
        lines: Summary of the run, shown at the top.
    """
    excess = score_excess(result, scorer)
    negatives = result.negatives.values
    counts = result.candidate_filter.counts()
    template = Environment(loader=PackageLoader("nestling", "."), autoescape=True).get_template("mining/audit.html")
    return template.render(
        title=title,
        scorer=scorer,
        settings=settings,
        lines=lines,
        scores=histograms(
            {
                "positives": result.positives.scores[scorer][result.positives.trusted],
                "negatives": result.candidates.scores[scorer][negatives],
            }
        ),
        gaps=histograms({"negative's score - lowest positive's": excess[negatives]}),
        rules=[(name, count, count / max(len(result.candidates), 1)) for name, count in counts.items()],
        remaining=int(result.candidate_filter.remaining.sum()),
        drawn=len(negatives),
        suspicious=[
            show_query(result, query, excess) for query in suspicious_queries(result, excess, SUSPICIOUS_QUERIES)
        ],
        ordinary=[show_query(result, query, excess) for query in ordinary_queries(result, ORDINARY_QUERIES)],
    )


def score_excess(result: MiningResult, scorer: str) -> Scores:
    """[C] float32: the excess of each candidate; NaN if it or all positives of its query lack a score."""
    excess: Scores = result.candidates.scores[scorer] - result.positives.lowest(scorer)[result.candidates.queries]
    return excess


def suspicious_queries(result: MiningResult, excess: Scores, count: int) -> list[int]:
    """The queries whose negatives have the highest excess, highest first."""
    negatives = result.negatives.values
    known = negatives[~np.isnan(excess[negatives])]
    queries = result.candidates.queries[known[np.argsort(-excess[known], kind="stable")]]
    worst: list[int] = queries[np.sort(np.unique(queries, return_index=True)[1])][:count].tolist()
    return worst


def ordinary_queries(result: MiningResult, count: int) -> list[int]:
    """Arbitrary queries with negatives, the same in every run: those with the smallest `query_id`, a hash."""
    filled = np.flatnonzero(result.negatives.counts > 0)
    chosen: list[int] = filled[np.argsort(result.query_set.identities[filled], kind="stable")][:count].tolist()
    return chosen


def show_query(result: MiningResult, query: int, excess: Scores) -> ShownQuery:
    """A query with the texts of its trusted positives, and of its negatives, the highest excess first."""
    positives, candidates = result.positives, result.candidates
    own = np.arange(positives.lists.offsets[query], positives.lists.offsets[query + 1])
    own = own[positives.trusted[own]]
    negatives = result.negatives[query]
    negatives = negatives[np.argsort(-np.nan_to_num(excess[negatives], nan=-np.inf), kind="stable")]
    positive_texts = zip(texts_of(result, positives.lists.values[own]), own.tolist(), strict=True)
    negative_texts = zip(texts_of(result, candidates.documents[negatives]), negatives.tolist(), strict=True)
    return ShownQuery(
        query=truncate(result.query_set.texts[query]),
        positives=[ShownDocument(text, describe(positives.scores, i)) for text, i in positive_texts],
        negatives=[
            ShownDocument(text, describe(candidates.scores, i), None if np.isnan(excess[i]) else float(excess[i]))
            for text, i in negative_texts
        ],
    )


def texts_of(result: MiningResult, documents: Integers) -> list[str]:
    return [truncate(result.pool.texts[document]) for document in documents.tolist()]


def truncate(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def describe(scores: Mapping[str, Scores], index: int) -> str:
    """The scores at an index by all scorers that gave one, as text."""
    return ", ".join(f"{name} {each[index]:.3f}" for name, each in scores.items() if not np.isnan(each[index]))
