"""The dialects of training rows and how each is recognised by its keys. `docs/data.md` shows a row of each."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import product

from nestling.records.columns import columns_line
from nestling.records.conversions import (
    read_flag_embedding,
    read_nestling,
    read_swift_messages,
    read_swift_response,
    read_tevatron,
)
from nestling.records.csv_files import no_names
from nestling.records.field_names import negative_fields
from nestling.records.fields import Row, shown_names
from nestling.records.instructions import document_instructions
from nestling.records.pairs import read_pair, read_sentences
from nestling.records.record import FieldError, Record


@dataclass(frozen=True)
class Dialect:
    """A format of training rows.

    Args:
        name: Its name, for messages.
        required: Keys that every row has.
        optional: Keys that a row may have.
        convert: Makes a record of a row; raises FieldError.
        unread: Names, for the summary, of what a row has inside its fields and the record has not.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], Record]
    unread: Callable[[Row], tuple[str, ...]] = lambda row: ()

    def has_field(self, key: str) -> bool:
        """Whether a key is a field of the dialect."""
        takes_negatives = "negative" in self.optional  # under any known name
        return key in self.required or key in self.optional or (takes_negatives and bool(negative_fields((key,))))


# What a row of a query and its documents may have besides: see `pairs.read_pair`.
WITH_PAIR = (
    *("negative", "negatives", "negative_1", "scores", "positive_scores", "negative_scores", "pos_scores"),
    *("neg_scores", "label", "labels", "score"),
)


def _graded_pairs(first: str, second: str) -> Dialect:
    convert = partial(read_sentences, first=first, second=second)
    return Dialect("graded pairs", (first, second), (*WITH_PAIR, "instruction"), convert)


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
            (*WITH_PAIR, "instruction"),
            partial(read_pair, query=query, document="positive"),
        )
        for query in ("anchor", "query")
    ),
    _graded_pairs("sentence1", "sentence2"),
    Dialect(
        "FlagEmbedding",
        ("query", "pos"),
        ("neg", "pos_scores", "neg_scores", "prompt"),
        read_flag_embedding,
        unread=document_instructions,
    ),
    Dialect(
        "ms-swift response",
        ("query", "response"),
        (*WITH_PAIR, "rejected_response", "system"),
        read_swift_response,
    ),
    Dialect(
        "ms-swift messages", ("messages", "positive_messages"), ("negative_messages", "label"), read_swift_messages
    ),
    Dialect("Tevatron", ("query", "positive_passages"), ("negative_passages", "instruction"), read_tevatron),
)
# Tried only when no other dialect matches, since rows of any of them may have an extra column named answer.
QUERIES_AND_DOCUMENTS = (
    *product(("query", "question"), ("answer", "document", "passage", "context", "pos_doc")),
    ("text", "text_pos"),
)
PAIRS = (
    *(
        Dialect(
            "pairs",
            (query, document),
            (*WITH_PAIR, "instruction"),
            partial(read_pair, query=query, document=document),
        )
        for query, document in QUERIES_AND_DOCUMENTS
    ),
    _graded_pairs("text", "text_pair"),
)

# Files that are no training data by themselves, by the fields of their rows.
PARTS_OF_SETS = {
    ("_id", "text"): "the documents or queries",
    ("query-id", "corpus-id"): "the judgements",
    ("query_id", "corpus_id"): "the judgements",
}
KEYS_COMPARED = 100  # with the keys of dialects, for a message
BEIR_FILES = "corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"


def recognise(keys: tuple[str, ...]) -> Dialect:
    """The dialect whose required keys are all among `keys`. Raises FieldError if none, or more than one, matches."""
    matching = [d for d in DIALECTS if set(d.required) <= set(keys)]
    matching = matching or [d for d in PAIRS if set(d.required) <= set(keys)]
    if len(matching) == 1:
        return matching[0]
    reason = None if matching else no_names(keys)
    if reason:
        raise FieldError("header", f"the first line {reason}")
    parts = [what for fields, what in PARTS_OF_SETS.items() if set(fields) <= set(keys)]
    if parts and not matching:
        raise FieldError("keys", f"these are {parts[0]} of a retrieval set; give its folder, which holds {BEIR_FILES}")
    found = shown_names(keys)
    if matching:
        options = " and ".join(_describe(d) for d in matching)
        lines = " or ".join(columns_line(keys, query=d.required[0], positive=d.required[1]) for d in matching)
        raise FieldError(
            "keys", f"found {found}; they fit {options}; rename or remove the fields of one, or name the one: {lines}"
        )
    nearest = max((*DIALECTS, *PAIRS), key=lambda d: _key_similarity(d, keys[:KEYS_COMPARED]))
    known = "; ".join(_describe(d) for d in (*DIALECTS, *PAIRS))
    raise FieldError(
        "keys",
        f"found {found}; no dialect has these. Nearest: {_describe(nearest)}. To name them: {columns_line(keys)}. "
        f"Known: {known}",
    )


def _describe(dialect: Dialect) -> str:
    return f"{dialect.name} ({', '.join(dialect.required)})"


def _key_similarity(dialect: Dialect, keys: tuple[str, ...]) -> float:
    ratios = [max((SequenceMatcher(None, need, key).ratio() for key in keys), default=0) for need in dialect.required]
    return sum(ratios) / len(ratios)
