"""The dialects of training rows: how each is recognised by its keys and becomes a `Record`.

`docs/data.md` shows a literal row of each.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import partial
from typing import Any

from nestling.records import fields
from nestling.records.fields import Row
from nestling.records.record import FieldError, Record

NUMBERED_NEGATIVE = re.compile(r"negative_(\d+)")
# A key this close to a field's name (0..1) is taken for a typo of it; `negative_ids` beside `negatives` is not.
TYPO = 0.88
ONLY_NEGATIVES = "; rows that have only negatives can train rerankers, not embedders"


@dataclass(frozen=True)
class Dialect:
    """A layout of rows: the keys that must be there, those that may be, and the conversion."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], Record]

    def knows(self, key: str) -> bool:
        numbered = "negative" in self.optional and NUMBERED_NEGATIVE.fullmatch(key) is not None
        return key in self.required or key in self.optional or numbered


def _nestling(row: Row) -> Record:
    positives, negatives = fields.texts(row, "positives"), fields.texts(row, "negatives")
    return Record(
        query=fields.text(row, "query"),
        positives=positives,
        negatives=negatives,
        positive_scores=fields.numbers(row, "positive_scores", "positives", len(positives)),
        negative_scores=fields.numbers(row, "negative_scores", "negatives", len(negatives)),
        instruction=fields.optional_text(row, "instruction"),
        score=fields.number(row, "score"),
    )


def _triplet(row: Row, query: str) -> Record:
    numbered = sorted((int(key[9:]), key) for key in row if NUMBERED_NEGATIVE.fullmatch(key))
    keys = ["negative", *(key for _, key in numbered)]
    negatives = tuple([fields.text(row, key) for key in keys if row.get(key) is not None])
    scores = fields.numbers(row, "scores", "positive and negatives together", 1 + len(negatives))
    return Record(
        query=fields.text(row, query),
        positives=(fields.text(row, "positive"),),
        negatives=negatives,
        positive_scores=scores and scores[:1],
        negative_scores=scores and scores[1:],
        instruction=fields.optional_text(row, "instruction"),
        score=_grade(row),
    )


def _grade(row: Row) -> float | None:
    """What sentence-transformers takes as a pair's label; taken for an unknown field, a 0 would read as relevant."""
    return fields.number(row, "label" if row.get("score") is None else "score")


def _graded(row: Row) -> Record:
    score = fields.number(row, "score")
    if score is None:
        raise FieldError("score", "missing")
    pair = fields.text(row, "sentence1"), fields.text(row, "sentence2")
    return Record(pair[0], (pair[1],), instruction=fields.optional_text(row, "instruction"), score=score)


def _pair(row: Row, query: str, document: str) -> Record:
    instruction = fields.optional_text(row, "instruction")
    return Record(fields.text(row, query), (fields.text(row, document),), instruction=instruction, score=_grade(row))


def _flag_embedding(row: Row) -> Record:
    positives, negatives = fields.texts(row, "pos"), fields.texts(row, "neg")
    return Record(
        query=fields.text(row, "query"),
        positives=positives,
        negatives=negatives,
        positive_scores=fields.numbers(row, "pos_scores", "pos", len(positives)),
        negative_scores=fields.numbers(row, "neg_scores", "neg", len(negatives)),
        instruction=fields.optional_text(row, "prompt"),
    )


def _swift_response(row: Row) -> Record:
    _refuse_media(row)
    rejected = row.get("rejected_response")
    return Record(
        query=fields.text(row, "query"),
        positives=(fields.text(row, "response"),),
        negatives=(fields.check_text("rejected_response", rejected),)
        if isinstance(rejected, str)
        else fields.texts(row, "rejected_response"),
        instruction=fields.optional_text(row, "system"),
        score=fields.number(row, "label"),
    )


def _swift_messages(row: Row) -> Record:
    _refuse_media(row)
    instruction, query = _conversation("messages", row["messages"])
    return Record(
        query=query,
        positives=_documents(row, "positive_messages"),
        negatives=_documents(row, "negative_messages"),
        instruction=instruction,
        score=fields.number(row, "label"),
    )


def _documents(row: Row, field: str) -> tuple[str, ...]:
    conversations = row.get(field)
    if conversations is None:
        return ()
    if not isinstance(conversations, list):
        raise FieldError(field, "expected a list of message lists")
    found = [_conversation(f"{field}[{i}]", messages) for i, messages in enumerate(conversations)]
    for i, (system, _) in enumerate(found):
        if system is not None:
            raise FieldError(f"{field}[{i}]", "a system message in a document; expected one user message")
    return tuple(text for _, text in found)


def _conversation(field: str, messages: Any) -> tuple[str | None, str]:
    """The system message (or None) and the only other message of a conversation."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FieldError(field, "expected a list of messages with role and content")
    systems = [message for message in messages if message.get("role") == "system"]
    others = [message for message in messages if message.get("role") != "system"]
    if len(others) != 1 or len(systems) > 1:
        raise FieldError(field, f"{len(others)} messages and {len(systems)} system messages; expected 1, and at most 1")
    if others[0].get("role") not in ("user", "assistant"):
        raise FieldError(field, f"role {others[0].get('role')!r}; expected user or assistant")
    system = fields.optional_text(systems[0], "content") if systems else None
    return system, fields.check_text(f"{field}.content", others[0].get("content"))


def _refuse_media(row: Row) -> None:
    for key, value in row.items():
        if value and key.rsplit("_", 1)[-1] in ("images", "videos", "audios"):
            raise FieldError(key, "only texts can be read; remove the field, and its tags from the texts")


def _tevatron(row: Row) -> Record:
    return Record(
        query=fields.text(row, "query"),
        positives=_passages(row, "positive_passages"),
        negatives=_passages(row, "negative_passages"),
        instruction=fields.optional_text(row, "instruction"),
    )


def _passages(row: Row, field: str) -> tuple[str, ...]:
    passages = row.get(field)
    if passages is None:
        return ()
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise FieldError(field, "expected a list of objects with title and text")
    return tuple([_passage(passage, f"{field}[{i}]") for i, passage in enumerate(passages)])


def _passage(passage: Row, name: str) -> str:
    try:
        return fields.check_text("text", document_text(passage))
    except FieldError as error:
        raise FieldError(name, str(error)) from None


def document_text(row: Row) -> str:
    """A document as it is embedded: title + ' ' + text, stripped; "" if neither holds anything."""
    if row.get("text") is None and row.get("title") is None:
        raise FieldError("text", "missing")
    parts = [row.get("title") or "", row.get("text") or ""]
    for field, value in zip(("title", "text"), parts, strict=True):
        if not isinstance(value, str):
            fields.check_text(field, value)
    return " ".join(parts).strip()


DIALECTS = (
    Dialect(
        "nestling",
        ("query", "positives"),
        ("negatives", "positive_scores", "negative_scores", "instruction", "score"),
        _nestling,
    ),
    *(
        Dialect(
            "sentence-transformers",
            (query, "positive"),
            ("negative", "scores", "instruction", "label", "score"),
            partial(_triplet, query=query),
        )
        for query in ("anchor", "query")
    ),
    Dialect("graded pairs", ("sentence1", "sentence2", "score"), ("instruction",), _graded),
    Dialect("FlagEmbedding", ("query", "pos"), ("neg", "pos_scores", "neg_scores", "prompt"), _flag_embedding),
    Dialect("ms-swift response", ("query", "response"), ("rejected_response", "system", "label"), _swift_response),
    Dialect("ms-swift messages", ("messages", "positive_messages"), ("negative_messages", "label"), _swift_messages),
    Dialect("Tevatron", ("query", "positive_passages"), ("negative_passages", "instruction"), _tevatron),
)
# Tried only when none of the above fits, since an answer can be a column beside any of them.
PAIRS = tuple(
    Dialect(
        "pairs", (query, document), ("instruction", "label", "score"), partial(_pair, query=query, document=document)
    )
    for query in ("query", "question")
    for document in ("answer", "document", "passage")
)


def recognise(keys: tuple[str, ...]) -> Dialect:
    """The only dialect whose required keys are all present. Raises FieldError if there is none, or several."""
    fitting = [d for d in DIALECTS if set(d.required) <= set(keys)]
    fitting = fitting or [d for d in PAIRS if set(d.required) <= set(keys)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(repr(key) for key in keys) or "none"
    if fitting:
        options = " and ".join(_describe(d) for d in fitting)
        raise FieldError("keys", f"found {found}; they fit {options}; rename or remove the fields of one")
    nearest = max((*DIALECTS, *PAIRS), key=lambda d: _closeness(d, keys))
    known = "; ".join(_describe(d) for d in (*DIALECTS, *PAIRS))
    raise FieldError("keys", f"found {found}; no dialect has these. Nearest: {_describe(nearest)}. Known: {known}")


def _describe(dialect: Dialect) -> str:
    return f"{dialect.name} ({', '.join(dialect.required)})"


def _closeness(dialect: Dialect, keys: tuple[str, ...]) -> float:
    ratios = [max((SequenceMatcher(None, need, key).ratio() for key in keys), default=0) for need in dialect.required]
    return sum(ratios) / len(ratios)


class DialectReader:
    """Converts the rows of one source, which must all be in the dialect of the first.

    `ignored` counts the rows in which each field that the dialect does not know was present and not null. With
    `allow_no_positives` a row may have negatives only.
    """

    def __init__(self, *, allow_no_positives: bool = False) -> None:
        self._allow_no_positives = allow_no_positives
        self.dialect: Dialect | None = None
        self.ignored: Counter[str] = Counter()
        self._graded: bool | None = None
        # Rows of one file share few layouts, so the keys are judged once for each.
        self._unknown_keys: dict[tuple[str, ...], tuple[str, ...]] = {}

    def convert(self, row: Row) -> Record:
        """One row as a record. Raises FieldError."""
        keys = tuple(row)
        unknown = self._unknown_keys.get(keys)
        if unknown is None:
            unknown = self._unknown_keys[keys] = self._judge(keys)
        for key in unknown:
            self.ignored[key] += row[key] is not None
        assert self.dialect is not None
        record = self.dialect.convert(row)
        if not record.positives and not (self._allow_no_positives and record.negatives):
            field = self.dialect.required[1]
            reason = "missing" if row[field] is None else "the list is empty; expected at least one"
            raise FieldError(field, reason + (ONLY_NEGATIVES if record.negatives else ""))
        self._check_graded(record)
        return record

    def _judge(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        self.dialect = self.dialect or recognise(keys)
        missing = [key for key in self.dialect.required if key not in keys]
        if missing:
            raise FieldError(missing[0], f"missing, in a file of dialect {self.dialect.name}{_other(keys)}")
        unknown = tuple(key for key in keys if not self.dialect.knows(key))
        for key in unknown:
            near = get_close_matches(key, (*self.dialect.required, *self.dialect.optional), n=1, cutoff=TYPO)
            if near:
                raise FieldError(key, f"not a field of dialect {self.dialect.name}; did you mean {near[0]!r}?")
        return unknown

    def _check_graded(self, record: Record) -> None:
        graded = record.score is not None
        if graded and (len(record.positives) != 1 or record.negatives or record.positive_scores):
            raise FieldError("score", "a graded pair has one positive, no negatives and no teacher scores")
        self._graded = graded if self._graded is None else self._graded
        if graded != self._graded:
            kinds = ("a graded pair", "a row without score")
            raise FieldError("score", f"{kinds[not graded]} in a file that began with {kinds[graded]}; split the file")


def _other(keys: tuple[str, ...]) -> str:
    try:
        return f"; the row is {recognise(keys).name}: do not mix dialects in one file"
    except FieldError:
        return ""
