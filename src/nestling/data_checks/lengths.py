"""Lengths of texts in characters, words and tokens, and the effect of truncation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex

from nestling.data_checks.language import main_scripts

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LIMITS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
TEXTS_PER_BLOCK = 4096
LETTER_OR_DIGIT = regex.compile(r"[\p{L}\p{N}]")


@dataclass(frozen=True)
class TextMeasures:
    """Measures of N texts.

    Args:
        characters: [N] int64, without leading and trailing white space.
        words: [N] int64, separated by white space.
        wordless: [N] bool, whether the text has neither a letter nor a digit.
        scripts: [N] int64, indices into `language.SCRIPTS`.
    """

    characters: np.ndarray
    words: np.ndarray
    wordless: np.ndarray
    scripts: np.ndarray


@dataclass(frozen=True)
class LengthDistribution:
    """Mean, minimum, quantiles (by the inverted distribution function, so that they are lengths) and maximum."""

    mean: float
    least: int
    quantiles: dict[str, int]
    most: int


@dataclass(frozen=True)
class Truncation:
    """Effect of truncating texts at a limit.

    Args:
        limit: Maximum number of tokens of a text, including prompt and special tokens.
        texts: Number of texts that are longer.
        share: Fraction of the texts that are longer.
        tokens: Fraction of all tokens that is lost.
    """

    limit: int
    texts: int
    share: float
    tokens: float


def measure(texts: Sequence[str]) -> TextMeasures:
    """Measure texts, reading them in blocks."""
    blocks = [_measure(texts[start : start + TEXTS_PER_BLOCK]) for start in range(0, len(texts), TEXTS_PER_BLOCK)]
    return TextMeasures(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def length_distribution(lengths: np.ndarray) -> LengthDistribution:
    """Distribution of lengths [N]; N is above 0."""
    values = np.quantile(lengths, QUANTILES, method="inverted_cdf")
    quantiles = {f"{quantile:.0%}": int(value) for quantile, value in zip(QUANTILES, values, strict=True)}
    return LengthDistribution(float(lengths.mean()), int(lengths.min()), quantiles, int(lengths.max()))


def truncations(lengths: np.ndarray, own_limit: int | None) -> list[Truncation]:
    """Effect of truncation at the usual limits, up to the first that truncates nothing, and at `own_limit`."""
    longest_limit = next((limit for limit in LIMITS if limit >= lengths.max()), LIMITS[-1])
    limits = {limit for limit in LIMITS if limit <= longest_limit} | ({own_limit} if own_limit else set())
    return [_truncation(lengths, limit) for limit in sorted(limits)]


def _truncation(lengths: np.ndarray, limit: int) -> Truncation:
    longer = lengths > limit
    tokens_lost = (lengths - limit)[longer].sum() / lengths.sum()
    return Truncation(limit, int(longer.sum()), float(longer.mean()), float(tokens_lost))


def _measure(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    characters = np.array([len(text.strip()) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    wordless = np.array([LETTER_OR_DIGIT.search(text) is None for text in texts])
    return characters, words, wordless, main_scripts(texts)
