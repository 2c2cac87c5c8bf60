"""Normalisation of texts for comparison (case, punctuation, white space, Unicode form), and their shingles."""

import unicodedata

import regex

INVISIBLE = regex.compile(r"\p{Cf}+")
# All punctuation except connectors (category Pc): snake_case is one word.
SEPARATORS = regex.compile(r"[\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\p{Z}\p{Cc}]+")
# Scripts without spaces between words: each character counts as a word.
UNSPACED = "".join(
    rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
WORDS = regex.compile(rf"[{UNSPACED}]|[^ {UNSPACED}]+")


def normalise(text: str) -> str:
    """Case-folded NFKC form, without invisible characters and with one space for each run of punctuation and spaces.

    Symbols and underscores are kept (`C++`, `>`, `snake_case`). A text of punctuation only keeps it, so that `&&` and
    `!!` differ.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return SEPARATORS.sub(" ", INVISIBLE.sub("", folded)).strip() or " ".join(folded.split())


def shingles(normalised: str, size: int) -> set[str]:
    """All runs of `size` consecutive words of a normalised text; the whole text if it has fewer. Never empty."""
    words = WORDS.findall(normalised)
    return {" ".join(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))}


def jaccard(first: set[str], second: set[str]) -> float:
    """Jaccard similarity of two sets of shingles: size of the intersection over size of the union."""
    intersection = len(first & second)
    return intersection / (len(first) + len(second) - intersection)
