"""The dialects of training rows and how each is recognised by its keys. `docs/data.md` shows a row of each."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial

from nestling.records.conversions import (
    NUMBERED_NEGATIVE,
    read_flag_embedding,
    read_graded_pair,
    read_nestling,
    read_pair,
    read_sentence_transformers,
    read_swift_messages,
    read_swift_response,
    read_tevatron,
)
from nestling.records.fields import Row
from nestling.records.record import FieldError, Record


@dataclass(frozen=True)
class Dialect:
    """A format of training rows.

    Args:
        name: Its name, for messages.
        required: Keys that every row has.
        optional: Keys that a row may have.
        convert: Makes a record of a row; raises FieldError.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], Record]

    def has_field(self, key: str) -> bool:
        """Whether a key is a field of the dialect."""
        numbered = "negative" in self.optional and NUMBERED_NEGATIVE.fullmatch(key) is not None
        return key in self.required or key in self.optional or numbered


DIALECTS = (
    Dialect(
        "nestling",
        ("query", "positives"),
        ("negatives", "positive_scores", "negative_scores", "instruction", "score"),
        read_nestling,
    ),
    *(
        Dialect(
            "sentence-transformers",
            (query, "positive"),
            ("negative", "scores", "instruction", "label", "score"),
            partial(read_sentence_transformers, query=query),
        )
        for query in ("anchor", "query")
    ),
    Dialect("graded pairs", ("sentence1", "sentence2", "score"), ("instruction",), read_graded_pair),
    Dialect("FlagEmbedding", ("query", "pos"), ("neg", "pos_scores", "neg_scores", "prompt"), read_flag_embedding),
    Dialect("ms-swift response", ("query", "response"), ("rejected_response", "system", "label"), read_swift_response),
    Dialect(
        "ms-swift messages", ("messages", "positive_messages"), ("negative_messages", "label"), read_swift_messages
    ),
    Dialect("Tevatron", ("query", "positive_passages"), ("negative_passages", "instruction"), read_tevatron),
)
# Tried only when no other dialect matches, since rows of any of them may have an extra column named answer.
PAIRS = tuple(
    Dialect(
        "pairs",
        (query, document),
        ("instruction", "label", "score"),
        partial(read_pair, query=query, document=document),
    )
    for query in ("query", "question")
    for document in ("answer", "document", "passage")
)


def recognise(keys: tuple[str, ...]) -> Dialect:
    """The dialect whose required keys are all among `keys`. Raises FieldError if none, or more than one, matches."""
    matching = [d for d in DIALECTS if set(d.required) <= set(keys)]
    matching = matching or [d for d in PAIRS if set(d.required) <= set(keys)]
    if len(matching) == 1:
        return matching[0]
    found = ", ".join(repr(key) for key in keys) or "none"
    if matching:
        options = " and ".join(_describe(d) for d in matching)
        raise FieldError("keys", f"found {found}; they fit {options}; rename or remove the fields of one")
    nearest = max((*DIALECTS, *PAIRS), key=lambda d: _key_similarity(d, keys))
    known = "; ".join(_describe(d) for d in (*DIALECTS, *PAIRS))
    raise FieldError("keys", f"found {found}; no dialect has these. Nearest: {_describe(nearest)}. Known: {known}")


def _describe(dialect: Dialect) -> str:
    return f"{dialect.name} ({', '.join(dialect.required)})"


def _key_similarity(dialect: Dialect, keys: tuple[str, ...]) -> float:
    ratios = [max((SequenceMatcher(None, need, key).ratio() for key in keys), default=0) for need in dialect.required]
    return sum(ratios) / len(ratios)
