"""Columns of a source that the user names: `{query: title, positive: body, negatives: others}`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from nestling.records.field_names import names_negatives, negative_fields
from nestling.records.fields import Row, check_keys, shown_names
from nestling.records.record import FieldError

ROLES = (
    *("query", "positive", "negatives", "scores", "positive_scores", "negative_scores"),
    *("label", "labels", "score", "instruction"),
)
QUERIES = ("query", "question", "anchor", "sentence1", "title", "prompt", "input", "instruction")
POSITIVES = (
    *("positive", "positives", "pos", "positive_ctxs", "context", "passage", "document", "text", "body", "content"),
    *("response", "chosen", "output", "completion", "answer", "answers", "sentence2"),
)
PLAIN = re.compile(r"[A-Za-z_]\w*")
# What holds a JSON array: of numbers, and of texts, which may themselves begin with a bracket ("[ -f x ] && rm x").
NUMBERS, TEXTS = re.compile(r"\[\s*[\d-]"), re.compile(r"\[\s*[\"'{].*\]\s*\Z", re.S)
NOT_TEXTS = re.compile(r".*(?:id|ids|score|scores|label|labels|type|source|index)", re.I)


class ColumnMap:
    """The fields of a source's rows, taken from the columns that the user named; all others are not read.

    Args:
        columns: Field -> column; empty to leave rows as they are.

    Attributes:
        ignored: Column that is not read -> number of rows in which it is present and not null.

    Raises:
        ValueError: A field that no record has, or none named for the query or the positive.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = {"positive" if role == "positives" else role: name for role, name in columns.items()}
        self._unseen = set(self._columns.values())
        self.ignored: Counter[str] = Counter()
        unknown = [role for role in self._columns if role not in ROLES and not negative_fields((role,))]
        missing = [role for role in ("query", "positive") if role not in self._columns]
        if columns and (unknown or missing):
            what = f"unknown field {unknown[0]!r}" if unknown else f"no column is named for {missing[0]}"
            raise ValueError(f"columns: {what}; expected query, positive and some of {', '.join(ROLES)}")

    def rename(self, row: Row) -> Row:
        """The row under the names of the fields; those whose column is not there are left out."""
        if not self._columns:
            return row
        self._unseen -= row.keys()
        for role in ("query", "positive"):
            if self._columns[role] not in row:
                found = shown_names(row)
                raise FieldError("columns", f"no column {self._columns[role]!r} for {role}; the row has {found}")
        read = set(self._columns.values())
        check_keys(row)
        self.ignored.update(column for column, value in row.items() if column not in read and value is not None)
        return {role: _list_of_cell(role, row[column]) for role, column in self._columns.items() if column in row}

    def check_seen(self, row: Row) -> None:
        """Raise FieldError, after the last `row`, for a column that no row had."""
        if self._unseen:
            raise FieldError("columns", f"no row has {min(self._unseen)!r}; this one has {shown_names(row)}")


def _list_of_cell(role: str, value: Any) -> Any:
    """The list in a cell of a CSV file, which holds it as a JSON array; other values are returned as they are."""
    array = TEXTS if role == "positive" or names_negatives(role) else NUMBERS
    if role in ("query", "instruction") or not isinstance(value, str) or not array.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise FieldError(role, f"expected a text or a JSON array: {error}") from None


def columns_line(keys: Iterable[str], **known: str) -> str:
    """The setting that names the columns of a row, filled in by `known` fields and by likeness for the others."""
    keys = list(keys)
    chosen = {**known, "query": known.get("query") or _pick(keys, QUERIES, known.values())}
    chosen["positive"] = known.get("positive") or _pick(keys, POSITIVES, chosen.values())
    negatives = [key for key in keys if names_negatives(key) and key not in chosen.values() and not _not_texts(key)]
    start = 1 if "negatives" in known else 0
    chosen |= {f"negative_{i}" if i else "negatives": key for i, key in enumerate(negatives, start)}
    order = ["query", "positive", *sorted(chosen.keys() - {"query", "positive"})]
    flag = ",".join(f"{role}={chosen[role]}" for role in order)
    return f"columns: {{{', '.join(f'{role}: {_quoted(chosen[role])}' for role in order)}}} (scripts: --columns {flag})"


def _pick(keys: list[str], names: Iterable[str], used: Iterable[str]) -> str:
    """The first of `names` among the keys, else the first key that may hold a text; COLUMN if there is none."""
    free = [key for key in keys if key not in set(used) and not names_negatives(key)]
    named = [name for name in names if name in free]
    return next(iter([*named, *(key for key in free if not _not_texts(key))]), "COLUMN")


def _not_texts(key: str) -> bool:
    return NOT_TEXTS.fullmatch(key) is not None


def _quoted(column: str) -> str:
    return column if PLAIN.fullmatch(column) else json.dumps(column, ensure_ascii=False)
