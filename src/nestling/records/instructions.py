"""Texts with an instruction of their own, [instruction, text], as GritLM and MEDI (INSTRUCTOR, uniem) write them.

The third element that MEDI may have, a number, only tells queries from documents.
"""

from typing import Any

from nestling.records import fields
from nestling.records.fields import Row
from nestling.records.record import FieldError

PAIR = "[instruction, text]"
DOCUMENT_FIELDS = ("pos", "neg")


def instructed_query(row: Row, instruction: str) -> tuple[str, str | None]:
    """The text of `query` and its instruction, which stands in front of it or in the field `instruction`."""
    query, own = row.get("query"), fields.optional_text(row, instruction)
    if not isinstance(query, list):
        return fields.text(row, "query"), own
    if not _is_pair(query):
        raise FieldError("query", f"expected a text, or {PAIR}")
    if own and query[0] and own != query[0]:
        raise FieldError(instruction, "differs from the instruction in query; expected one of the two")
    return fields.check_text("query[1]", query[1]), _instruction(query) or own


def plain_documents(row: Row, field: str) -> tuple[str, ...]:
    """The documents of a field without their instructions; () if the field is absent."""
    if not isinstance(row.get(field), list):
        return fields.documents(row, field)
    return fields.documents({field: [_text(field, i, item) for i, item in enumerate(_items(row, field))]}, field)


def document_instructions(row: Row) -> tuple[str, ...]:
    """Names, for the summary, of the instructions of documents in a row: documents are trained without them."""
    return tuple([f"instruction in {field}" for field in DOCUMENT_FIELDS if any(map(_instruction, _items(row, field)))])


def _items(row: Row, field: str) -> list[Any]:
    """The items of a field with a list; with an instructed query a single pair is one document."""
    value = row.get(field)
    if not isinstance(value, list):
        return []
    if not isinstance(row.get("query"), list):
        return value
    if _is_pair(value):
        return [value]
    if any(isinstance(item, str) for item in value):
        raise FieldError(field, f"the query is {PAIR}; expected one such pair, or a list of them, got a list of texts")
    return value


def _text(field: str, position: int, item: Any) -> Any:
    if not isinstance(item, list):
        return item
    if not _is_pair(item):
        raise FieldError(f"{field}[{position}]", f"expected a text, or {PAIR}")
    return item[1]


def _instruction(item: Any) -> str | None:
    """The instruction of a pair; None if it is blank, or the item is no pair."""
    return (item[0] if item[0].strip() else None) if isinstance(item, list) and _is_pair(item) else None


def _is_pair(value: list[Any]) -> bool:
    texts, rest = value[:2], value[2:]
    return len(texts) == 2 and all(isinstance(text, str) for text in texts) and (not rest or _is_mark(rest))


def _is_mark(rest: list[Any]) -> bool:
    return len(rest) == 1 and isinstance(rest[0], int)
