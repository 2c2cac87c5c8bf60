"""Word files (.docx) as blocks: paragraphs and tables, below their headings, without heads and feet of pages."""

import io
import re
import zipfile

from docx import Document
from docx.table import Table
from docx.text.paragraph import Paragraph

from nestling.documents.blocks import Block, Extraction, below, path_of
from nestling.documents.refusals import RefusedError

HEADING = re.compile(r"Heading (\d)")
# A file may unpack to so many times its own limit: pictures are packed already, and text is not a hundred times.
TIMES = 16


def read_word(data: bytes, limit: int) -> Extraction:
    """The text of a Word file. Positions count its paragraphs and tables.

    Args:
        data: The file.
        limit: Bytes of a document; its parts may have `TIMES` as many.

    Raises:
        RefusedError: It is no such file, or unpacks to too much.
    """
    require_size(data, limit)
    document = Document(io.BytesIO(data))
    styles = StyleNames()
    title, headings = document.core_properties.title or "", list[tuple[int, str]]()
    extraction, section = Extraction(unit="paragraphs"), 0
    for number, each in enumerate(document.iter_inner_content()):
        if isinstance(each, Table):
            text = "\n".join(_row(row.cells) for row in each.rows)
        else:
            text, style = each.text.strip(), styles(each)
            heading = HEADING.fullmatch(style)
            if text and (heading or style == "Title"):
                headings = below(headings, int(heading[1]) if heading else 0, text)
                section += 1
                continue
        if text.strip():
            extraction.blocks.append(Block(text, number, number + 1, path_of(headings, title), section=section))
    return extraction


class StyleNames:
    """The name of a paragraph's style, "" without one; each is looked up once, since python-docx goes through all."""

    def __init__(self) -> None:
        self._names: dict[str | None, str] = {}

    def __call__(self, paragraph: Paragraph) -> str:
        identity = paragraph._p.style
        if identity not in self._names:
            self._names[identity] = (paragraph.style.name if paragraph.style else "") or ""
        return self._names[identity]


def require_size(data: bytes, limit: int) -> None:
    """RefusedError for a file that is no zip file, encrypted ones among them, or that unpacks to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(each.file_size for each in archive.infolist())
    except zipfile.BadZipFile as error:
        raise RefusedError("cannot be parsed", f"{error}; perhaps it is encrypted, or of Word before 2007") from None
    if size > TIMES * limit:
        raise RefusedError("too large", f"it unpacks to {size:,} bytes")


def _row(cells: "tuple[object, ...]") -> str:
    """The texts of a row's cells; merged cells, which are one and the same, once."""
    distinct = {id(cell._tc): " ".join(cell.text.split()) for cell in cells}  # type: ignore[attr-defined]
    return " | ".join(distinct.values())
