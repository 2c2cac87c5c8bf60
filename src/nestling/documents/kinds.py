"""Which documents are read, by the ending of their names."""

import warnings
from collections.abc import Callable
from pathlib import PurePosixPath

from nestling.documents.archives import INSIDE
from nestling.documents.blocks import Extraction
from nestling.documents.encodings import Decoded, decode
from nestling.documents.markdown import read_markdown
from nestling.documents.pdf import read_pdf
from nestling.documents.plain_text import read_code, read_python, read_text
from nestling.documents.refusals import RefusedError
from nestling.documents.rows import read_json_lines, read_table
from nestling.documents.web_page import read_web_page
from nestling.documents.word import read_word

ENDINGS = {
    "text": ".txt .text .rst .org .adoc .log .tex",
    "markdown": ".md .markdown .mdown",
    "html": ".html .htm .xhtml",
    "pdf": ".pdf",
    "word": ".docx",
    "table": ".csv .tsv",
    "jsonl": ".jsonl .ndjson",
    "python": ".py .pyi",
    "code": ".bash .c .cc .cpp .cs .css .cxx .dart .ex .exs .go .h .hh .hpp .hs .java .jl .js .jsx .kt .lua .m .ml .mm "
    ".php .pl .pm .proto .r .rb .rs .scala .sh .sql .swift .ts .tsx .vue .zig",
}
KINDS = {ending: kind for kind, endings in ENDINGS.items() for ending in endings.split()}
TEXTS: dict[str, Callable[[str], Extraction]] = {
    "text": read_text,
    "markdown": read_markdown,
    "html": read_web_page,
    "table": read_table,
    "jsonl": read_json_lines,
    "python": read_python,
    "code": read_code,
}


def kind_of(path: str) -> str | None:
    """The kind of a document; None for one that is not read."""
    return KINDS.get(PurePosixPath(path.rpartition(INSIDE)[2]).suffix.lower())


def extract(kind: str, data: bytes, limit: int) -> tuple[Extraction, Decoded | None]:
    """The blocks of a document, and its text if it is one.

    Args:
        kind: As `kind_of` tells it.
        data: Its content.
        limit: Bytes of a document.

    Raises:
        RefusedError: It cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about the source code that it parses, among others
        if kind == "pdf":
            return read_pdf(data), None
        if kind == "word":
            return read_word(data, limit), None
        decoded = decode(data)
        return TEXTS[kind](decoded.text), decoded


def require_content(data: bytes) -> None:
    """RefusedError for a file without any."""
    if not data.strip():
        raise RefusedError("empty")
