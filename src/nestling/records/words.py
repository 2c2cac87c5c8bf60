"""Words of texts, and texts reduced to their letters and digits for comparison."""

import re
import unicodedata

import xxhash

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han; and Hangul, whose words carry endings.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
# A run of characters of these scripts (group 1), or a word of another script.
WORDS = re.compile(rf"([{UNSPACED}]+)|[^\W{UNSPACED}]+")
NOT_WORDS = re.compile(r"[\W_]+")


def folded_text(text: str) -> str:
    """A text in NFKC form, case-folded and without punctuation, symbols and white space."""
    return NOT_WORDS.sub("", unicodedata.normalize("NFKC", text).casefold())


def folded_text_id(text: str) -> int:
    """63-bit hash of the folded text; of the text itself if nothing is left of it."""
    return xxhash.xxh3_64_intdigest((folded_text(text) or text).encode()) >> 1
