"""One document as rows of a corpus.jsonl, and what of it is left out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nestling.documents.archives import Member
from nestling.documents.chunks import Chunk, Chunker
from nestling.documents.encodings import Decoded
from nestling.documents.kinds import extract, kind_of, require_content
from nestling.documents.refusals import Dropped, OutOfTime, RefusedError, time_limit

# Processor time for one document: a PDF file of thousands of pages takes a minute.
SECONDS = 300.0
Row = dict[str, Any]


@dataclass
class Reading:
    """What a document gives.

    Args:
        path: Its path; behind `INSIDE` the name in an archive.
        kind: What it was read as; None for what is no document.
        rows: Rows of a corpus.jsonl.
        dropped: What has no part in them.
        tokens: Tokens of all texts.
        encoding: Its encoding if it is a text.
    """

    path: str
    kind: str | None = None
    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    tokens: int = 0
    encoding: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, for a journal."""
        return {**vars(self), "dropped": [vars(each) for each in self.dropped]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Reading":
        """What `to_json` gave."""
        return cls(**{**content, "dropped": [Dropped(**each) for each in content["dropped"]]})


def read_document(member: Member | Dropped, chunker: Chunker, limit: int) -> Reading:
    """Read a document; whatever is wrong with it is told in the result.

    Args:
        member: The document, or why there is none.
        chunker: How it is cut.
        limit: Bytes of a document.
    """
    if isinstance(member, Dropped):
        return Reading(member.path, dropped=[member])
    kind = kind_of(member.path)
    if kind is None:
        return Reading(member.path, dropped=[Dropped(member.path, "kind of file that is not read")])
    try:
        with time_limit(SECONDS):
            return _read(kind, member, chunker, limit)
    except RefusedError as error:
        dropped = Dropped.of(member.path, error)
    except OutOfTime:
        dropped = Dropped(member.path, "takes too long", f"more than {SECONDS:.0f} s")
    except MemoryError:
        dropped = Dropped(member.path, "takes too much memory")
    except Exception as error:  # what damaged files raise in their libraries is of every kind
        dropped = Dropped(member.path, "cannot be parsed", f"{type(error).__name__}: {error}"[:300])
    return Reading(member.path, kind, dropped=[dropped])


def _read(kind: str, member: Member, chunker: Chunker, limit: int) -> Reading:
    require_content(member.data)
    extraction, decoded = extract(kind, member.data, limit)
    chunks, wordless = [], 0
    for chunk in chunker.chunks(extraction.blocks):
        if any(map(str.isalnum, chunk.text)):
            chunks.append(chunk)
        else:
            wordless += 1
    dropped = extraction.dropped + Counter({"chunk without words": wordless})
    reading = Reading(member.path, kind, tokens=sum(each.tokens for each in chunks))
    reading.encoding = decoded.encoding if decoded else None
    reading.dropped = [Dropped(member.path, reason, count=count) for reason, count in sorted(dropped.items())]
    if not chunks:
        reading.dropped.append(Dropped(member.path, "no text in it"))
    reading.rows = _rows(member.path, chunks, decoded, extraction.unit)
    return reading


def _rows(path: str, chunks: list[Chunk], decoded: Decoded | None, unit: str) -> list[Row]:
    """Rows in order; the number behind # counts those of the document."""
    offsets = decoded.byte_offsets(each for chunk in chunks for each in (chunk.start, chunk.end)) if decoded else None
    rows = []
    for number, chunk in enumerate(chunks, start=1):
        start, end = (offsets[chunk.start], offsets[chunk.end]) if offsets else (chunk.start, chunk.end)
        place = {"path": path, "unit": "bytes" if offsets else unit, "start": start, "end": end}
        known = {"page": chunk.first.page, "row": chunk.first.row, "headings": list(chunk.first.headings)}
        metadata = {**place, **{key: value for key, value in known.items() if value}}
        if decoded and decoded.encoding != "utf-8":
            metadata["encoding"] = decoded.encoding
        rows.append({"_id": f"{path}#{number}", "title": chunk.title, "text": chunk.text, "metadata": metadata})
    return rows
