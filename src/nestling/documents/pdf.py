"""PDF files as blocks: the paragraphs of each page, below the entries of the outline."""

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pypdf import PasswordType, PdfReader
from pypdf.errors import DependencyError

from nestling.documents.blocks import Extraction, below, numbered_lines, paragraphs, path_of, verbatim
from nestling.documents.refusals import RefusedError

# A first or last line on so many pages, and on so much of them, is a running head or foot.
PAGES, SHARE = 3, 0.5


def read_pdf(data: bytes) -> Extraction:
    """The text of a PDF file. Positions are those of characters in the text of a page, as pypdf extracts it.

    Raises:
        RefusedError: It needs a password.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a line for each damage that it reads on beyond
    reader = PdfReader(io.BytesIO(data))
    require_open(reader)
    title, outline = _title(reader), dict(_outline(reader))
    extraction = Extraction()
    texts = list(_page_texts(reader, extraction.dropped))
    running = _running_lines([text for text in texts if text.strip()])
    headings: list[tuple[int, str]] = []
    for number, text in enumerate(texts, start=1):
        for level, heading in outline.get(number, []):
            headings = below(headings, level, heading)
        begin, end = _inner(text, running, extraction.dropped)
        for start, stop in paragraphs(text[begin:end]):
            block = verbatim(text, begin + start, begin + stop, path_of(headings, title), page=number, flows=True)
            extraction.blocks += [block] if block else []
    return extraction


def require_open(reader: PdfReader) -> None:
    """Open a file that needs no password to be read; RefusedError for one that does."""
    try:
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise RefusedError("encrypted")
    except DependencyError as error:
        raise RefusedError("encrypted", str(error)) from None


def _title(reader: PdfReader) -> str:
    title = reader.metadata.title if reader.metadata else None
    return title or ""


def _page_texts(reader: PdfReader, dropped: Counter[str]) -> Iterator[str]:
    """The text of each page; empty for one that has none or cannot be read, which is counted."""
    for page in reader.pages:
        try:
            text = page.extract_text()
        except Exception:  # damages of a page have errors of every kind
            text = ""
            dropped["damaged page"] += 1
        else:
            dropped["page without text"] += not text.strip()
        yield text.encode("utf-8", "replace").decode()  # halves of surrogate pairs


def _outline(reader: PdfReader) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Number of a page -> (level, title) of the entries of the outline that lead there."""
    entries: dict[int, list[tuple[int, str]]] = {}
    waiting: list[tuple[int, Any]] = []
    try:
        waiting = [(1, each) for each in reversed(reader.outline)]
        while waiting:
            level, entry = waiting.pop()
            if isinstance(entry, list):
                waiting += [(level + 1, each) for each in reversed(entry)]
                continue
            page = reader.get_destination_page_number(entry)
            if page is not None and page >= 0 and entry.title:
                entries.setdefault(page + 1, []).append((level, entry.title))
    except Exception:  # a damaged outline; the text is there without it
        return
    yield from entries.items()


def _running_lines(texts: list[str]) -> set[str]:
    ends = Counter(line for text in texts for line in {_shape(text, 0), _shape(text, -1)})
    return {line for line, count in ends.items() if count >= max(PAGES, SHARE * len(texts))}


def _shape(text: str, number: int) -> str:
    """The first or last line with one sign for all numbers, since pages are numbered."""
    return re.sub(r"\d+", "#", text.strip().splitlines()[number].strip())


def _inner(text: str, running: set[str], dropped: Counter[str]) -> tuple[int, int]:
    """Where a page's text begins and ends without running head and foot."""
    lines = [(at, line) for at, line in numbered_lines(text) if not line.isspace()]
    if not lines:
        return 0, 0
    first, last = _shape(text, 0) in running, len(lines) > 1 and _shape(text, -1) in running
    dropped["running head or foot"] += first + last
    begin = lines[0][0] + (len(lines[0][1]) if first else 0)
    return begin, lines[-1][0] if last else len(text)
