"""Conversion of one row of each dialect into a `Record`; every function raises FieldError for a row it cannot read."""

from typing import Any

from nestling.records import fields
from nestling.records.field_names import names_media
from nestling.records.fields import Row
from nestling.records.instructions import instructed_query, plain_documents
from nestling.records.pairs import read_pair
from nestling.records.record import FieldError, Record, cut


def read_nestling(row: Row) -> Record:
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


def read_flag_embedding(row: Row) -> Record:
    query, instruction = instructed_query(row, "prompt")
    positives, negatives = plain_documents(row, "pos"), plain_documents(row, "neg")
    return Record(
        query=query,
        positives=positives,
        negatives=negatives,
        positive_scores=fields.numbers(row, "pos_scores", "pos", len(positives)),
        negative_scores=fields.numbers(row, "neg_scores", "neg", len(negatives)),
        instruction=instruction,
    )


def read_swift_response(row: Row) -> Record:
    _refuse_media(row)
    return read_pair(row, "query", "response", instruction="system")


def read_swift_messages(row: Row) -> Record:
    _refuse_media(row)
    instruction, query = _single_message("messages", row["messages"])
    return Record(
        query=query,
        positives=_message_documents(row, "positive_messages"),
        negatives=_message_documents(row, "negative_messages"),
        instruction=instruction,
        score=fields.number(row, "label"),
    )


def _message_documents(row: Row, field: str) -> tuple[str, ...]:
    conversations = row.get(field)
    if conversations is None:
        return ()
    if not isinstance(conversations, list):
        raise FieldError(field, "expected a list of message lists")
    found = [_single_message(f"{field}[{i}]", messages) for i, messages in enumerate(conversations)]
    for i, (system, _) in enumerate(found):
        if system is not None:
            raise FieldError(f"{field}[{i}]", "a system message in a document; expected one user message")
    return tuple(text for _, text in found)


def _single_message(field: str, messages: Any) -> tuple[str | None, str]:
    """The content of the system message (None without one) and of the only other message."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FieldError(field, "expected a list of messages with role and content")
    systems = [message for message in messages if message.get("role") == "system"]
    others = [message for message in messages if message.get("role") != "system"]
    if len(others) != 1 or len(systems) > 1:
        raise FieldError(field, f"{len(others)} messages and {len(systems)} system messages; expected 1, and at most 1")
    if others[0].get("role") not in ("user", "assistant"):
        raise FieldError(field, f"role {cut(str(others[0].get('role')), 40)!r}; expected user or assistant")
    system = fields.optional_text(systems[0], "content") if systems else None
    return system, fields.check_text(f"{field}.content", others[0].get("content"))


def _refuse_media(row: Row) -> None:
    for key, value in row.items():
        if value and names_media(key):
            raise FieldError(key, "only texts can be read; remove the field, and its tags from the texts")


def read_tevatron(row: Row) -> Record:
    return Record(
        query=fields.text(row, "query"),
        positives=_passages(row, "positive_passages"),
        negatives=_passages(row, "negative_passages"),
        positive_scores=fields.scores_beside("positive_passages", row.get("positive_passages") or []),
        negative_scores=fields.scores_beside("negative_passages", row.get("negative_passages") or []),
        instruction=fields.optional_text(row, "instruction"),
    )


def _passages(row: Row, field: str) -> tuple[str, ...]:
    passages = row.get(field)
    if passages is None:
        return ()
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise FieldError(field, "expected a list of objects with title and text")
    return fields.documents(row, field)
