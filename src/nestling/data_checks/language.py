"""Scripts and languages of texts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import regex

# Script names of Unicode; "none" stands for texts without a letter of any of them.
SCRIPTS = (
    "none",
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Ethiopic"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala"),
    *("Thai", "Lao", "Myanmar", "Khmer", "Tibetan", "Mongolian", "Hangul", "Hiragana", "Katakana", "Han"),
)
SURROGATES = range(0xD800, 0xE000)
# A language with a lower probability is reported as UNDETERMINED.
CONFIDENCE = 0.5
UNDETERMINED = "und"


def main_scripts(texts: Sequence[str]) -> np.ndarray:
    """[N] int64: for each text, the script of most of its letters, as an index into `SCRIPTS`."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    counts = np.bincount(text_of * len(SCRIPTS) + _script_of_code_points()[codes], minlength=len(texts) * len(SCRIPTS))
    letters = counts.reshape(len(texts), len(SCRIPTS))[:, 1:]
    return np.where(letters.any(axis=1), letters.argmax(axis=1) + 1, 0)


def languages(texts: Iterable[str]) -> Counter[str]:
    """Number of texts in each language (ISO 639 code by py3langid, or UNDETERMINED)."""
    identifier = _identifier()
    return Counter(identifier.classify(text)[0] for text in texts)


@cache
def _script_of_code_points() -> np.ndarray:
    """[0x110000] uint8: index into `SCRIPTS` of the script of every code point."""
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
