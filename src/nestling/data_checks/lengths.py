"""How long texts are, in characters, words and a model's tokens, and what limits would cut."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex

from nestling.data_checks.language import main_scripts

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LIMITS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
TEXTS_PER_BLOCK = 4096
MEANING = regex.compile(r"[\p{L}\p{N}]")


@dataclass(frozen=True)
class Measured:
    """Of each of N texts.

    Args:
        characters: [N] int64, without spaces at the ends.
        words: [N] int64, between spaces.
        wordless: [N] bool, without a letter or digit.
        scripts: [N] int64, positions in `language.SCRIPTS`.
    """

    characters: np.ndarray
    words: np.ndarray
    wordless: np.ndarray
    scripts: np.ndarray


@dataclass(frozen=True)
class Distribution:
    """Mean, quantiles (lengths that occur) and extremes of lengths."""

    mean: float
    least: int
    quantiles: dict[str, int]
    most: int


@dataclass(frozen=True)
class Truncation:
    """What a limit cuts.

    Args:
        limit: Tokens of a text, prompt and special tokens included.
        texts: Texts that are longer.
        share: Their share of the texts.
        tokens: The share of all tokens that is lost.
    """

    limit: int
    texts: int
    share: float
    tokens: float


def measure(texts: Sequence[str]) -> Measured:
    """Stream over the texts."""
    blocks = [_measure(texts[start : start + TEXTS_PER_BLOCK]) for start in range(0, len(texts), TEXTS_PER_BLOCK)]
    return Measured(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def distribution(lengths: np.ndarray) -> Distribution:
    """Figures of [N] lengths, N above 0."""
    values = np.quantile(lengths, QUANTILES, method="inverted_cdf")
    quantiles = {f"{share:.0%}": int(value) for share, value in zip(QUANTILES, values, strict=True)}
    return Distribution(float(lengths.mean()), int(lengths.min()), quantiles, int(lengths.max()))


def truncations(lengths: np.ndarray, given: int | None) -> list[Truncation]:
    """What the usual limits cut, up to the first that cuts nothing, and what a given one does."""
    enough = next((limit for limit in LIMITS if limit >= lengths.max()), LIMITS[-1])
    limits = {limit for limit in LIMITS if limit <= enough} | ({given} if given else set())
    return [_cut(lengths, limit) for limit in sorted(limits)]


def _cut(lengths: np.ndarray, limit: int) -> Truncation:
    longer = lengths > limit
    lost = (lengths - limit)[longer].sum() / lengths.sum()
    return Truncation(limit, int(longer.sum()), float(longer.mean()), float(lost))


def _measure(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    characters = np.array([len(text.strip()) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    wordless = np.array([MEANING.search(text) is None for text in texts])
    return characters, words, wordless, main_scripts(texts)
