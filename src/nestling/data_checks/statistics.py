"""Statistics of the distinct texts of a dataset: lengths, scripts, languages and the effect of truncation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nestling.data_checks.checks import KINDS, Checks
from nestling.data_checks.language import SCRIPTS, languages
from nestling.data_checks.lengths import LengthDistribution, Truncation, length_distribution, truncations
from nestling.data_checks.rows import SourceRows
from nestling.records.record import Kind
from nestling.records.texts import Texts

if TYPE_CHECKING:
    from nestling.data_checks.tokens import TokenCounter  # which loads torch, and many checks need no model

SEED = 0


@dataclass(frozen=True)
class TokenStatistics:
    """Lengths in tokens of a model, including prompt and special tokens, and the effect of truncation at limits."""

    distribution: LengthDistribution
    truncations: list[Truncation]


@dataclass(frozen=True)
class Statistics:
    """Statistics of the distinct queries, or of the distinct documents.

    Args:
        texts: Number of distinct texts.
        sampled: Number of texts in the sample for languages and tokens.
        characters: Lengths in characters.
        words: Lengths in words, separated by white space.
        scripts: Number of texts by the script of most of their letters, the most frequent first.
        languages: Number of sampled texts by language, likewise; "und" for undetermined.
        tokens: Lengths in tokens; None without a model.
    """

    texts: int
    sampled: int
    characters: LengthDistribution
    words: LengthDistribution
    scripts: dict[str, int]
    languages: dict[str, int]
    tokens: TokenStatistics | None


StatisticsByKind = dict[Kind, Statistics]


def statistics(
    rows: SourceRows, checks: Checks, counter: "TokenCounter | None", limits: Mapping[Kind, int | None], *, sample: int
) -> StatisticsByKind:
    """Compute the statistics of queries and of documents.

    Args:
        rows: The rows.
        checks: Has the measures of all texts.
        counter: Counts tokens; None for no statistics of tokens.
        limits: Maximum number of tokens in training, which is added to the usual limits.
        sample: Size of the random sample of each kind for languages and tokens.
    """
    own = {kind: limits["query" if rows.graded else kind] for kind in KINDS}
    return {kind: _statistics_of_kind(kind, rows, checks, counter, own[kind], sample) for kind in KINDS}


def _statistics_of_kind(
    kind: Kind, rows: SourceRows, checks: Checks, counter: "TokenCounter | None", limit: int | None, sample: int
) -> Statistics:
    measures, texts = checks.measures[kind], rows.texts_by_kind[kind].texts
    drawn = _sample(texts, sample)
    counts = np.bincount(measures.scripts, minlength=len(SCRIPTS))
    tokens = None
    if counter is not None:
        lengths = counter(drawn, "query" if rows.graded else kind)  # as training reads both texts of graded pairs
        tokens = TokenStatistics(length_distribution(lengths), truncations(lengths, limit))
    return Statistics(
        texts=len(texts),
        sampled=len(drawn),
        characters=length_distribution(measures.characters),
        words=length_distribution(measures.words),
        scripts={SCRIPTS[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]},
        languages=dict(languages(drawn).most_common()),
        tokens=tokens,
    )


def _sample(texts: Texts, sample: int) -> list[str]:
    if len(texts) <= sample:
        return list(texts)
    return texts[np.sort(np.random.default_rng(SEED).choice(len(texts), sample, replace=False))]
