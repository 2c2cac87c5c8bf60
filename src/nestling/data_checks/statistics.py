"""Figures of a dataset's distinct texts: lengths, scripts, languages, and what limits of tokens cut."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.checks import KINDS, Checks, distinct
from nestling.data_checks.language import SCRIPTS, languages
from nestling.data_checks.lengths import Distribution, Truncation, distribution, truncations
from nestling.data_checks.rows import SourceRows
from nestling.data_checks.tokens import TokenCounter
from nestling.models.embedder import Kind
from nestling.records.texts import Texts

SEED = 0


@dataclass(frozen=True)
class Tokens:
    """Token counts under a model, prompt and special tokens included."""

    distribution: Distribution
    truncations: list[Truncation]


@dataclass(frozen=True)
class Statistics:
    """Figures of the distinct texts of one kind.

    Args:
        texts: How many there are.
        sampled: How many of them languages and tokens are of.
        characters: Lengths in characters.
        words: Lengths in words between spaces.
        scripts: Texts by the script of most of their letters, the most frequent first.
        languages: Sampled texts by language, likewise; "und" where the model is not sure.
        tokens: Lengths in tokens; None without a model.
    """

    texts: int
    sampled: int
    characters: Distribution
    words: Distribution
    scripts: dict[str, int]
    languages: dict[str, int]
    tokens: Tokens | None


StatisticsByKind = dict[Kind, Statistics]


def statistics(
    rows: SourceRows, checks: Checks, counter: TokenCounter | None, limits: Mapping[Kind, int | None], *, sample: int
) -> StatisticsByKind:
    """Figures of queries and of documents.

    Args:
        rows: The rows.
        checks: Holds what was measured of all texts.
        counter: Counts tokens; None for none.
        limits: The limits of tokens that are planned.
        sample: Texts of each kind to take languages and tokens of, drawn at random.
    """
    return {kind: _of_kind(kind, rows, checks, counter, limits[kind], sample) for kind in KINDS}


def _of_kind(
    kind: Kind, rows: SourceRows, checks: Checks, counter: TokenCounter | None, limit: int | None, sample: int
) -> Statistics:
    measured, texts = checks.measured[kind], distinct(rows)[kind].texts
    drawn = _draw(texts, sample)
    counts = np.bincount(measured.scripts, minlength=len(SCRIPTS))
    tokens = None
    if counter is not None:
        lengths = counter(drawn, kind)
        tokens = Tokens(distribution(lengths), truncations(lengths, limit))
    return Statistics(
        texts=len(texts),
        sampled=len(drawn),
        characters=distribution(measured.characters),
        words=distribution(measured.words),
        scripts={SCRIPTS[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]},
        languages=dict(languages(drawn).most_common()),
        tokens=tokens,
    )


def _draw(texts: Texts, sample: int) -> list[str]:
    if len(texts) <= sample:
        return list(texts)
    return texts[np.sort(np.random.default_rng(SEED).choice(len(texts), sample, replace=False))]
