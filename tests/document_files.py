"""Files of every kind that scripts/read_documents.py reads, made here, and reading back the place of a chunk."""

import html
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from docx import Document
from docx.table import Table
from pypdf import PdfReader

from nestling.documents.archives import Member
from nestling.documents.chunks import Chunker
from nestling.documents.documents import Reading, read_document
from nestling.documents.tokens import Words
from scripts.bench.documents import pdf_file

LIMIT = 1 << 20
MARKDOWN = """---
layout: page
---
# Birds

Swallows build their *nests* of mud.\r
They return each year.

## Owls

- hunt at night
- hear `well`

```python
# no heading
```

| bird | eggs |
|---|---|
| wren | 6 |
"""
PAGE = """<!doctype html><html><head><title>Birds &amp; bees</title><style>p {}</style></head><body>
<nav><a href=/>Home</a> <a href=/x>Imprint</a></nav><div id=main><h1>Swallows</h1>
<p>They build nests of <b>mud &amp; straw</b>,<br>caf&eacute; walls&#33; included.</p><h2>Young</h2>
<table><tr><th>eggs<th>days<tr><td>5</td><td>18</td></tr></table><pre>one
  two</pre></div><footer>All rights reserved</footer><script>var x = "<p>no</p>";</script></body></html>"""
PYTHON = '''"""A module."""
import os


# Says hello.
@staticmethod
def greet(name):
    """Greet."""
    return f"hello {name}"


class Nest:
    """A nest."""

    eggs = 3

    def lay(self):
        self.eggs += 1


print(greet("you"))
'''
CODE = "package main\n\nfunc a() {\n\tone()\n\n\ttwo()\n}\n\nfunc b() {}\n"
TABLE = 'Title,Text,Year\nSwallow,"Builds nests,\nof mud",2001\n\nOwl,"Hunts at ""night""",2002\n'
LINES = '{"_id": "a", "title": "Swallow", "text": "Builds nests"}\nbroken\n[1]\n{"name": "owl", "eggs": 3}\n'


def word_file() -> bytes:
    """A Word file with headings, a table and an empty paragraph."""
    document = Document()
    document.core_properties.title = "The birds"
    document.add_heading("Swallows", 1)
    document.add_paragraph("They build nests of mud.")
    document.add_paragraph("")
    document.add_heading("Young", 2)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["eggs", "days", "5", "18"], strict=True):
        cell.text = text
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def zip_file(members: dict[str, bytes | str]) -> bytes:
    """A zip file of names and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def files() -> dict[str, bytes]:
    """A file of each kind, by name."""
    pages = [["Birds today", "Swallows build nests of mud.", "They return."], ["Birds today", "Owls hunt at night."]]
    return {
        "birds.md": MARKDOWN.encode(),
        "code/main.go": CODE.encode(),
        "code/nest.py": PYTHON.encode(),
        "latin.txt": "Die Vögel bauen große Nester.\n\nDas Käuzchen hört gut und jagt nachts über Wiesen.\n".encode(
            "cp1252"
        ),
        "lines.jsonl": LINES.encode(),
        "page.html": PAGE.encode(),
        "paper.pdf": pdf_file([*pages, [], ["Birds today", "Wrens are small."]]),
        "report.docx": word_file(),
        "sixteen.txt": "\ufeffZaunkönige singen laut.\r\n\r\nIm Winter schlafen sie zusammen.".encode("utf-16-le"),
        "table.csv": TABLE.encode(),
    }


def read(name: str, data: bytes | str, *, max_tokens: int = 256, overlap: int = 0, limit: int = LIMIT) -> Reading:
    """What a document gives, by words."""
    member = Member(name, data if isinstance(data, bytes) else data.encode())
    return read_document(member, Chunker(Words(), max_tokens, overlap), limit)


def at_its_place(row: dict[str, Any], data: bytes) -> str:
    """The text at the place that a chunk names, read from its file; of HTML without tags."""
    place = row["metadata"]
    start, end = place["start"], place["end"]
    if place["unit"] == "paragraphs":
        found = list(Document(io.BytesIO(data)).iter_inner_content())[start:end]
        return "\n".join(
            "\n".join(" | ".join(cell.text for cell in row.cells) for row in each.rows)
            if isinstance(each, Table)
            else each.text
            for each in found
        )
    if place["unit"] == "characters":
        return PdfReader(io.BytesIO(data)).pages[place["page"] - 1].extract_text()[start:end]
    text = data[start:end].decode(place.get("encoding", "utf-8"))
    return html.unescape(re.sub(r"<[^>]*>", "", text)) if place["path"].endswith(".html") else text


def write_all(folder: Path, contents: dict[str, bytes]) -> None:
    """Write files by name."""
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
