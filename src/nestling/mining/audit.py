"""An HTML page for checking mined negatives by eye: score histograms, what each rule dropped, what is suspicious.

One file without scripts that loads nothing. Suspicious are negatives with a high score of their own, negatives whose
score is high beside that of the lowest positive of their query, and positives that score lowest.

Shapes: C candidates of all queries together.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling import __version__
from nestling.mining.result import MiningResult
from nestling.mining.retrieved import Scores
from nestling.pages import page_environment
from nestling.report.histograms import histograms
from nestling.retrieval.metrics import Integers

# Negatives or positives in a list of suspicious ones, and of a query that is shown; queries at random.
SUSPICIOUS = 25
ORDINARY_QUERIES = 10
# Characters of a text that are shown.
MAX_CHARACTERS = 1200


@dataclass(frozen=True)
class ShownDocument:
    """A document as it is shown.

    Args:
        text: Its text, truncated if it is long.
        scores: Its scores by all scorers that gave one, and beside the lowest positive's, as text.
    """

    text: str
    scores: str


@dataclass(frozen=True)
class ShownQuery:
    """A query as it is shown, with its positives and negatives.

    Args:
        query: Its text.
        positives: Its positives, at most `SUSPICIOUS` that score lowest.
        negatives: Its negatives, at most `SUSPICIOUS` that score highest.
        more: How many positives and negatives are left out.
    """

    query: str
    positives: Sequence[ShownDocument]
    negatives: Sequence[ShownDocument]
    more: tuple[int, int]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        short: Its name in the list of parts.
        title: Its heading.
        note: What follows from what is seen there.
        queries: What it shows.
    """

    short: str
    title: str
    note: str
    queries: Sequence[ShownQuery]


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
    scores, lowest = result.candidates.scores[scorer], lowest_positives(result, scorer)
    negatives = result.negatives.values
    counts = result.candidate_filter.counts()
    return (
        page_environment(__version__)
        .get_template("mining/audit.html")
        .render(
            title=title,
            scorer=scorer,
            settings=settings,
            lines=lines,
            scores=histograms(
                {
                    "positives": result.positives.scores[scorer][result.positives.trusted],
                    "negatives": scores[negatives],
                }
            ),
            gaps=histograms({"negative's score - lowest positive's": (scores - lowest)[negatives]}),
            rules=[(name, count, count / max(len(result.candidates), 1)) for name, count in counts.items()],
            remaining=int(result.candidate_filter.remaining.sum()),
            drawn=len(negatives),
            sections=list(sections(result, scorer, lowest)),
        )
    )


def lowest_positives(result: MiningResult, scorer: str) -> Scores:
    """[C] float32: the score of the lowest positive of each candidate's query; NaN if none has a score."""
    lowest: Scores = result.positives.lowest(scorer)[result.candidates.queries]
    return lowest


def sections(result: MiningResult, scorer: str, lowest: Scores) -> Iterator[Section]:
    """The lists of what is suspicious, and queries at random."""
    scores, negatives = result.candidates.scores[scorer], result.negatives.values
    highest = highest_of(negatives, scores[negatives])
    yield Section(
        "Highest negatives",
        f"The {len(highest)} negatives that score highest",
        "No other negative of this run scores higher. If most of these are relevant, set a max_score or raise "
        "rank_from.",
        [show_query(result, scorer, *each) for each in by_query(result, highest)],
    )
    # Logits and standard scores have no ratio: a positive at or below 0 leaves the excess alone.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(lowest > 0, scores / lowest, np.nan)
    nearest = highest_of(negatives, ratios[negatives])
    yield Section(
        "Highest beside the positive",
        f"The {len(nearest)} negatives that score highest beside the lowest positive of their query",
        "No other negative has a higher share of its positive's score. If most of these are relevant, lower "
        "max_score_ratio or raise absolute_margin; if their positives are wrong, see the next list.",
        [show_query(result, scorer, *each) for each in by_query(result, nearest)],
    )
    suspects = suspect_positives(result, scorer)
    yield Section(
        "Suspect positives",
        f"The {len(suspects)} queries whose positives score lowest",
        "Suspect positives: no other query of this run has a positive that scores lower. If most of them are not "
        "relevant, set consistent or least_score, which drop such positives; if they are relevant, the scorer does not "
        "know the domain, and its scores are a poor threshold.",
        [show_query(result, scorer, query, result.negatives[query]) for query in suspects],
    )
    yield Section(
        "At random",
        f"{min(ORDINARY_QUERIES, int((result.negatives.counts > 0).sum()))} queries at random",
        "What most rows look like.",
        [show_query(result, scorer, query, result.negatives[query]) for query in ordinary_queries(result)],
    )


def highest_of(items: Integers, scores: Scores) -> Integers:
    """The items with the highest scores, highest first; those without a score are left out."""
    known = np.flatnonzero(~np.isnan(scores))
    return items[known[np.argsort(-scores[known], kind="stable")][:SUSPICIOUS]]


def by_query(result: MiningResult, negatives: Integers) -> Iterator[tuple[int, Integers]]:
    """Queries with those of the negatives that are theirs, in the order of the first of them."""
    queries = result.candidates.queries[negatives]
    for query in dict.fromkeys(queries.tolist()):
        yield query, negatives[queries == query]


def suspect_positives(result: MiningResult, scorer: str) -> list[int]:
    """The queries with the lowest scores of a trusted positive, lowest first."""
    lowest = result.positives.lowest(scorer)
    suspects: list[int] = highest_of(np.arange(len(lowest)), -lowest).tolist()
    return suspects


def ordinary_queries(result: MiningResult) -> list[int]:
    """Arbitrary queries with negatives, the same in every run: those with the smallest `query_id`, a hash."""
    filled = np.flatnonzero(result.negatives.counts > 0)
    order = np.argsort(result.query_set.identities[filled], kind="stable")
    chosen: list[int] = filled[order][:ORDINARY_QUERIES].tolist()
    return chosen


def show_query(result: MiningResult, scorer: str, query: int, negatives: Integers) -> ShownQuery:
    """A query with the texts of its trusted positives, and of some of its negatives, the highest score first."""
    positives, candidates = result.positives, result.candidates
    own = np.arange(positives.lists.offsets[query], positives.lists.offsets[query + 1])
    own = own[positives.trusted[own]]
    scores = candidates.scores[scorer]
    more = max(len(own) - SUSPICIOUS, 0), max(len(negatives) - SUSPICIOUS, 0)
    own = own[np.sort(np.argsort(positives.scores[scorer][own], kind="stable")[:SUSPICIOUS])]
    negatives = negatives[np.argsort(-np.nan_to_num(scores[negatives], nan=-np.inf), kind="stable")][:SUSPICIOUS]
    lowest = float(positives.lowest(scorer)[query])
    positive_texts = zip(texts_of(result, positives.lists.values[own]), own.tolist(), strict=True)
    negative_texts = zip(texts_of(result, candidates.documents[negatives]), negatives.tolist(), strict=True)
    return ShownQuery(
        query=truncate(result.query_set.texts[query]),
        positives=[ShownDocument(text, describe(positives.scores, i)) for text, i in positive_texts],
        negatives=[
            ShownDocument(text, " · ".join([*beside(float(scores[i]), lowest), describe(candidates.scores, i)]))
            for text, i in negative_texts
        ],
        more=more,
    )


def beside(score: float, positive: float) -> Iterator[str]:
    """A negative's score beside that of the lowest positive, as text; nothing if either is missing."""
    if not math.isnan(score - positive):
        yield f"{score - positive:+.3f} from the lowest positive"
        if positive > 0:
            yield f"{score / positive:.0%} of it"


def texts_of(result: MiningResult, documents: Integers) -> list[str]:
    return [truncate(result.pool.texts[document]) for document in documents.tolist()]


def truncate(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def describe(scores: Mapping[str, Scores], index: int) -> str:
    """The scores at an index by all scorers that gave one, as text."""
    return ", ".join(f"{name} {each[index]:.3f}" for name, each in scores.items() if not np.isnan(each[index]))
