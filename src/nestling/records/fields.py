"""Checked access to the fields of a row: each function returns a clean value or raises `FieldError`.

A field that holds null counts as absent, since tables (CSV, Parquet) have every column in every row.
"""

import math
from typing import Any

from nestling.records.record import FieldError

Row = dict[str, Any]


def check_text(field: str, value: Any) -> str:
    """`value` if it is a text with something in it that can be written as UTF-8."""
    if not isinstance(value, str):
        raise FieldError(field, f"expected a text, got {_kind(value)}")
    if not value or value.isspace():
        raise FieldError(field, "the text is empty")
    return value


def text(row: Row, field: str) -> str:
    """The text in a field that must be there."""
    value = row.get(field)
    if value is None:
        raise FieldError(field, "missing")
    return check_text(field, value)


def optional_text(row: Row, field: str) -> str | None:
    """The text in a field that may be absent or empty (both give None)."""
    value = row.get(field)
    return None if value is None or value == "" else check_text(field, value)


def texts(row: Row, field: str) -> tuple[str, ...]:
    """The list of texts in a field; () if it is absent."""
    value = row.get(field)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise FieldError(field, f"expected a list of texts, got {_kind(value)}")
    return tuple([check_text(f"{field}[{i}]", item) for i, item in enumerate(value)])


def number(row: Row, field: str) -> float | None:
    """The finite number in a field, or None if it is absent."""
    value = row.get(field)
    return None if value is None else check_number(field, value)


def check_number(field: str, value: Any) -> float:
    """`value` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"expected a number, got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number above 1.8e308
        number = math.inf
    if not math.isfinite(number):
        raise FieldError(field, f"expected a finite number, got {str(value)[:40]}")
    return number


def numbers(row: Row, field: str, aligned_with: str, length: int) -> tuple[float, ...] | None:
    """The list of finite numbers in a field, one for each text of another field; None if it is absent."""
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, list):
        raise FieldError(field, f"expected a list of numbers, got {_kind(value)}")
    if len(value) != length:
        raise FieldError(field, f"{len(value)} scores for {length} texts in {aligned_with}; expected one for each")
    return tuple([check_number(f"{field}[{i}]", item) for i, item in enumerate(value)])


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]}")
