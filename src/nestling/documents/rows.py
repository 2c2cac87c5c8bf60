"""Tables and JSON lines as blocks: one for each row, which is a document of its own."""

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any

from nestling.documents.blocks import Block, Extraction, fed_lines
from nestling.records.csv_files import long_cells
from nestling.records.fields import encodes

TEXTS = ("text", "content", "contents", "body", "passage", "document")
TITLES = ("title", "heading")
DELIMITERS = ",;\t|"
UNPARSED = "rest of a table that cannot be parsed"
LONG_ROW = 1 << 17  # characters; the csv module's own limit of a cell


def read_table(text: str) -> Extraction:
    """The rows of CSV or TSV, whose first row names the columns."""
    extraction, place = Extraction(), [0, 0]
    header: list[str] = []
    delimiter = _delimiter(text)
    reader = csv.reader(_followed(text, place), delimiter=delimiter)
    try:
        with long_cells():
            for number, cells in enumerate(reader):
                start, place[0] = place[0], place[1]
                if number == 0:
                    header = [cell.strip() or f"column {at}" for at, cell in enumerate(cells, start=1)]
                elif place[1] == len(text) and _never_ends(text[start:], delimiter):
                    extraction.dropped[UNPARSED] += 1
                elif any(cells):
                    extra = [f"column {at}" for at in range(len(header) + 1, len(cells) + 1)]
                    _add(extraction, dict(zip([*header, *extra], cells, strict=False)), start, place[1], number)
    except csv.Error:
        extraction.dropped[UNPARSED] += 1
    return extraction


def _never_ends(row: str, delimiter: str) -> bool:
    """Whether a last row is in a quotation at its end: one more cell would be part of its last.

    A short one of a single line is taken as it is, as csv does: a mark too many. A longer one has taken in other rows.
    """
    row = row.rstrip("\r\n")
    if "\n" not in row and len(row) <= LONG_ROW:
        return False
    one, more = (
        next(csv.reader([*each.splitlines(keepends=True)], delimiter=delimiter)) for each in (row, row + delimiter)
    )
    return len(one) == len(more)


def read_json_lines(text: str) -> Extraction:
    """The objects of JSON lines. A line feed alone ends a line, since a string may hold other separators."""
    extraction = Extraction()
    for number, (at, line) in enumerate(fed_lines(text), start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            extraction.dropped["line that is no JSON"] += 1
            continue
        if isinstance(row, dict):
            _add(extraction, {key: _shown(value) for key, value in row.items()}, at, at + len(line.rstrip()), number)
        else:
            extraction.dropped["line that is no JSON object"] += 1
    return extraction


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _add(extraction: Extraction, row: Mapping[str, str], start: int, end: int, number: int) -> None:
    """Add a row: its text if a column says that it is one, otherwise a line `name: value` for each of its values."""
    lower = {key.lower(): key for key in row}
    named = next((lower[name] for name in TEXTS if name in lower), None)
    title = next((lower[name] for name in TITLES if name in lower), None) if named else None
    text = row[named] if named else "\n".join(f"{key}: {value}" for key, value in row.items() if value.strip())
    if not text.strip():
        extraction.dropped["row without text"] += 1
    elif not encodes(text):
        extraction.dropped["row with half of a surrogate pair"] += 1
    else:
        headings = (" ".join(row[title].split()),) if title and row[title].strip() and encodes(row[title]) else ()
        extraction.blocks.append(Block(text, start, end, headings, row=number))


def _followed(text: str, place: list[int]) -> Iterator[str]:
    """The lines of a text; place[1] is where the last one that was taken ends."""
    for at, line in fed_lines(text):
        place[1] = at + len(line)
        yield line


def _delimiter(text: str) -> str:
    """What separates the columns: of the first line, the character that is there most often."""
    first = text[:10_000].lstrip().partition("\n")[0]
    return max(DELIMITERS, key=first.count)
