"""Which scripts and languages texts are written in."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import regex

# Unicode's names; "none" is for texts without a letter of any of these.
SCRIPTS = (
    "none",
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Ethiopic"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala"),
    *("Thai", "Lao", "Myanmar", "Khmer", "Tibetan", "Mongolian", "Hangul", "Hiragana", "Katakana", "Han"),
)
SURROGATES = range(0xD800, 0xE000)
# A language is named if the model gives it at least this probability; else it is UNDETERMINED.
CONFIDENCE = 0.5
UNDETERMINED = "und"


def main_scripts(texts: Sequence[str]) -> np.ndarray:
    """[N] int64: for each text the script most of its letters belong to, as a position in `SCRIPTS`."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counts = np.bincount(text_of * len(SCRIPTS) + _table()[codes], minlength=len(texts) * len(SCRIPTS))
    letters = counts.reshape(len(texts), len(SCRIPTS))[:, 1:]
    return np.where(letters.any(axis=1), letters.argmax(axis=1) + 1, 0)


def languages(texts: Iterable[str]) -> Counter[str]:
    """How many texts are in each language (ISO 639), by py3langid; UNDETERMINED for those it is not sure of."""
    identifier = _identifier()
    return Counter(identifier.classify(text)[0] for text in texts)


@cache
def _table() -> np.ndarray:
    """[0x110000] uint8: position in `SCRIPTS` of every character."""
    points = np.array([point for point in range(0x110000) if point not in SURROGATES])
    characters = "".join(map(chr, points.tolist()))
    table = np.zeros(0x110000, np.uint8)
    for number, name in enumerate(SCRIPTS[1:], start=1):
        for run in regex.finditer(rf"\p{{Script={name}}}+", characters):
            table[points[run.start() : run.end()]] = number
    return table


@cache
def _identifier():  # type: ignore[no-untyped-def]  # py3langid has no types
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=CONFIDENCE)
