"""Names of fields that hold negatives and teacher scores, and fields that hold them although no dialect reads them."""

import re
from functools import lru_cache
from typing import Any

from nestling.records.words import UNSPACED

_PLACES = "list|texts?|docs?|documents?|passages?|responses?|answers?|sentences?"
# `negative`, `negative_1`, `negatives`, `hard_negs`, `neg_list`, `negative_text`, `rejected`, `rejected_response`, ...
NEGATIVE = re.compile(rf"(?:(?:hard_?)?neg(?:ative)?s?|rejected)(?:_?(?:{_PLACES}))?(?:_?(\d+))?")
NEGATIVE_WORDS = re.compile(
    r"(?:hard)?neg(?:ative)?s?\d*|rejected|distractors?|irrelevant|unrelated|incorrect|wrong|nonrelevant|hn\d*"
)
POSITIVE_WORDS = re.compile(r"pos(?:itive)?s?|teacher")
# Words of names such as `negative_ids`, `neg_type`: these fields say something about texts and hold none.
ABOUT_TEXTS = frozenset(
    (
        *("id", "ids", "docid", "docids", "idx", "index", "indices", "rank", "ranks", "num", "count"),
        *("type", "types", "source", "sources"),
    )
)
SCORE_WORDS = frozenset(("score", "scores", "logits"))
# Three words with spaces between them, or characters of a script without spaces.
SENTENCE = re.compile(rf"\S+\s+\S+\s+\S|[{UNSPACED}]{{6}}")


@lru_cache(maxsize=1024)
def negative_fields(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of negatives among the keys of a row, in the order of their numbers; those without one first."""
    numbers = {key: int(found[1] or 0) for key in keys if (found := NEGATIVE.fullmatch(key))}
    return tuple(sorted(numbers, key=numbers.__getitem__))


@lru_cache(maxsize=1024)
def names_negatives(key: str) -> bool:
    """Whether a field by its name holds negatives."""
    return any(NEGATIVE_WORDS.fullmatch(word) for word in _words(key)) and ABOUT_TEXTS.isdisjoint(_words(key))


def names_media(key: str) -> bool:
    """Whether a field by its name holds images, videos or sounds, as those of ms-swift."""
    return key.rsplit("_", 1)[-1] in ("images", "videos", "audios")


def is_always_read(key: str) -> bool:
    """Whether a field by its name may hold what a reader refuses, if it is not of the dialect."""
    return names_negatives(key) or names_media(key) or _names_scores(key)


def unread_content(key: str, value: Any) -> str | None:
    """What a field that no dialect reads holds by its name or content; None for what can be left out of training."""
    if not value or isinstance(value, bool):
        return None
    scored = _names_scores(key)
    if scored and (_all_numbers(value) or (isinstance(value, float | int) and _of_documents(key))):
        return "teacher scores"
    if names_negatives(key) and not scored and _holds_text(value):
        return "negatives"
    if isinstance(value, list) and 2 * sum(map(_is_sentence, value)) > len(value):
        return "texts, which may be negatives or positives"
    return None


@lru_cache(maxsize=1024)
def _words(key: str) -> frozenset[str]:
    """The lower-case words of a name in snake_case or camelCase."""
    return frozenset(re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))


def _names_scores(key: str) -> bool:
    return not SCORE_WORDS.isdisjoint(_words(key))


def _of_documents(key: str) -> bool:
    return names_negatives(key) or any(POSITIVE_WORDS.fullmatch(word) for word in _words(key))


def _all_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _holds_text(value: Any) -> bool:
    return isinstance(value, str | dict) or (isinstance(value, list) and any(map(_holds_text, value)))


def _is_sentence(item: Any) -> bool:
    text = item.get("text") if isinstance(item, dict) else item
    return isinstance(text, str) and SENTENCE.search(text) is not None
