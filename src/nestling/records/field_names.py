"""Names of fields of negatives, teacher scores and labels, and fields of these that no dialect reads."""

import re
from functools import lru_cache
from typing import Any

from nestling.records.words import UNSPACED

_PLACES = "list|texts?|docs?|documents?|passages?|responses?|answers?|sentences?"
# `negative`, `negative_1`, `negatives`, `hard_negs`, `neg_list`, `negative_text`, `text_neg`, `rejected_response`, ...
NEGATIVE = re.compile(rf"(?:text_)?(?:(?:hard_?)?neg(?:ative)?s?|rejected)(?:_?(?:{_PLACES}))?(?:_?(\d+))?")
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
LABEL_WORDS = frozenset(("label", "labels", "relevance", "relevant", "grade", "grades", "similarity"))
NUMBER = re.compile(r"[-+]?\d*\.?\d+")
DENIALS = frozenset(("false", "no", "not", "neutral", "contradiction"))
LONGEST_LABEL = 20  # characters; a longer text is no label
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
    return names_negatives(key) or names_labels(key) or names_media(key) or _names_scores(key)


@lru_cache(maxsize=1024)
def names_labels(key: str) -> bool:
    """Whether a field by its name holds the label of the row's documents."""
    return key == "score" or not (LABEL_WORDS.isdisjoint(_words(key)) or ABOUT_TEXTS & _words(key))


def unread_content(key: str, value: Any) -> str | None:
    """What a field that no dialect reads holds by its name or content; None for what can be left out of training."""
    scored = _names_scores(key)
    if value and scored and (_all_numbers(value) or (_is_number(value) and _of_documents(key))):
        return "teacher scores"
    if names_labels(key) and not _affirms(value):
        return f"{str(value)[:40]}, a label other than 1 (a document that is not relevant belongs to the negatives)"
    if not value or isinstance(value, bool):
        return None
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


def _affirms(label: Any) -> bool:
    """Whether a label leaves the documents beside it positives: 1, true, or a text that denies nothing.

    0 and false say that they are not relevant. Other numbers are degrees, or numbers of classes, and a row that is
    trained without them is trained as relevant.
    """
    if isinstance(label, list):
        return all(map(_affirms, label))
    if isinstance(label, str):
        if not NUMBER.fullmatch(label):
            return len(label) > LONGEST_LABEL or not _denies(_words(label))
        label = float(label)
    return label == 1 or not isinstance(label, int | float)


def _denies(words: frozenset[str]) -> bool:
    return not DENIALS.isdisjoint(words) or any(map(NEGATIVE_WORDS.fullmatch, words))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_documents(key: str) -> bool:
    return names_negatives(key) or any(POSITIVE_WORDS.fullmatch(word) for word in _words(key))


def _all_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _holds_text(value: Any) -> bool:
    return isinstance(value, str | dict) or (isinstance(value, list) and any(map(_holds_text, value)))


def _is_sentence(item: Any) -> bool:
    text = item.get("text") if isinstance(item, dict) else item
    return isinstance(text, str) and SENTENCE.search(text) is not None
