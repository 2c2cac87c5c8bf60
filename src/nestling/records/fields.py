"""Typed access to the fields of a row: each function returns a checked value or raises `FieldError`.

A field that holds null counts as absent, since tables (CSV, Parquet) have every column in every row.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from nestling.records.record import FieldError

LONGEST_NAME = 40  # characters of a field's name, beyond which it looks like data
LONGEST_KEY = 1000  # characters, beyond which a name is refused
NAMES_SHOWN = 20  # in messages
Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]  # (1-based line in the source, row)


def check_text(field: str, value: Any) -> str:
    """Return `value` if it is a string that is neither empty nor only white space."""
    if not isinstance(value, str):
        raise FieldError(field, f"expected a text, got {_type_name(value)}")
    if not value or value.isspace():
        raise FieldError(field, "the text is empty")
    return value


def text(row: Row, field: str) -> str:
    """The text of a required field."""
    value = row.get(field)
    if value is None:
        raise FieldError(field, "missing")
    return check_text(field, value)


def optional_text(row: Row, field: str) -> str | None:
    """The text of an optional field; None if it is absent or empty."""
    value = row.get(field)
    return None if value is None or value == "" else check_text(field, value)


def texts(row: Row, field: str) -> tuple[str, ...]:
    """The texts of a list field; () if it is absent."""
    value = row.get(field)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FieldError(field, f"expected a list of texts, got {_type_name(value)}")
    return tuple([check_text(f"{field}[{i}]", item) for i, item in enumerate(value)])


def documents(row: Row, field: str) -> tuple[str, ...]:
    """The texts of a field that holds one, or a list of them; a document may be an object with title and text.

    () if the field is absent.
    """
    value = row.get(field)
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple([_document(f"{field}[{i}]", item) for i, item in enumerate(value)])
    if not isinstance(value, str | dict):
        raise FieldError(field, f"expected a text or a list of texts, got {_type_name(value)}")
    return (_document(field, value),)


def _document(field: str, value: Any) -> str:
    if not isinstance(value, dict):
        return check_text(field, value)
    if value.keys() == {"id"}:
        raise FieldError(field, "an id without a text; ids are read where one JSON object holds corpus and data")
    return passage(field, value)


def passage(field: str, row: Row) -> str:
    """The text of a document within a row, as it is embedded; it is not empty."""
    try:
        return check_text("text", document_text(row))
    except FieldError as error:
        raise FieldError(field, str(error)) from None


def number(row: Row, field: str) -> float | None:
    """The finite number in an optional field; None if it is absent."""
    value = row.get(field)
    return None if value is None else check_number(field, value)


def check_number(field: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"expected a number, got {_type_name(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number above 1.8e308
        number = math.inf
    if not math.isfinite(number):
        raise FieldError(field, f"expected a finite number, got {str(value)[:40]}")
    return number


def numbers(row: Row, field: str, aligned_with: str, length: int) -> tuple[float, ...] | None:
    """The finite numbers of a list field, one for each of the `length` texts in the field `aligned_with`.

    None if the field is absent.
    """
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, list):
        raise FieldError(field, f"expected a list of numbers, got {_type_name(value)}")
    if len(value) != length:
        raise FieldError(field, f"{len(value)} scores for {length} texts in {aligned_with}; expected one for each")
    return tuple([check_number(f"{field}[{i}]", item) for i, item in enumerate(value)])


def scores_beside(field: str, documents: list[Row]) -> tuple[float, ...] | None:
    """The teacher scores in the documents of a field, under `score`; None if no document has one."""
    scores = [number(document, "score") for document in documents]
    found = [score for score in scores if score is not None]
    if found and len(found) < len(scores):
        raise FieldError(f"{field}[{scores.index(None)}]", "score: missing, while others of the row have one")
    return tuple(found) if found else None


def document_text(row: Row) -> str:
    """The text of a document as it is embedded: title + ' ' + text, stripped; "" if both are empty.

    Raises FieldError if both fields are absent.
    """
    if row.get("text") is None and row.get("title") is None:
        raise FieldError("text", "missing")
    parts = [row.get("title") or "", row.get("text") or ""]
    for field, value in zip(("title", "text"), parts, strict=True):
        if not isinstance(value, str):
            check_text(field, value)
    return " ".join(parts).strip()


def shown_names(names: Iterable[str]) -> str:
    """The first names of fields, for a message; "none" without any."""
    names = list(names)
    shown = [repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…") for name in names[:NAMES_SHOWN]]
    more = [f"and {len(names) - NAMES_SHOWN:,} more"] if len(names) > NAMES_SHOWN else []
    return ", ".join([*shown, *more]) or "none"


def check_keys(names: Iterable[str]) -> None:
    """Raise FieldError for a name that is no valid text, or is too long to be one."""
    for name in names:
        if len(name) > LONGEST_KEY:
            raise FieldError(name, f"a name of {len(name):,} characters; expected at most {LONGEST_KEY:,}")
        if not encodes(name):
            raise FieldError(name, "half of a surrogate pair in this name; it is no valid text")


def encodes(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]}")
