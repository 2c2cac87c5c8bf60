"""The words and letters of a text, in scripts with spaces between words and without."""

import re
import unicodedata

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han; and Hangul, whose words carry endings.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORDS = re.compile(rf"([{UNSPACED}]+)|[^\W{UNSPACED}]+")


NOT_WORDS = re.compile(r"[\W_]+")


def letters(text: str) -> str:
    """What is left of a text without case, width, punctuation and white space (NFKC)."""
    return NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold())
