"""When two texts count as the same: without case, punctuation and spacing, in one Unicode form; and their shingles."""

import unicodedata

import regex

INVISIBLE = regex.compile(r"\p{Cf}+")
# All punctuation but that which joins words: snake_case is one word.
BETWEEN_WORDS = regex.compile(r"[\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}\p{Z}\p{Cc}]+")
# Scripts that set no spaces between words: each character counts as a word, so that two words are a pair of them.
UNSPACED = "".join(
    rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
WORDS = regex.compile(rf"[{UNSPACED}]|[^ {UNSPACED}]+")


def normalise(text: str) -> str:
    """Case-folded NFKC with one space for every run of punctuation and spaces, without invisible characters.

    Symbols and underscores stay (`C++`, `>`, `snake_case`). A text of punctuation alone keeps it, so that `&&` and `!!`
    differ.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return BETWEEN_WORDS.sub(" ", INVISIBLE.sub("", folded)).strip() or " ".join(folded.split())


def shingles(normalised: str, size: int) -> set[str]:
    """Every run of `size` words of a normalised text; the whole of one that has fewer. Never empty."""
    words = WORDS.findall(normalised)
    return {" ".join(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))}


def jaccard(first: set[str], second: set[str]) -> float:
    """Shingles that two texts share, of all that either has."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)
