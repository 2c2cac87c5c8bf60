"""Blocks: the pieces of a document that belong together, with their places in it.

A position is a number in the unit of the document: of a character, or of a paragraph of a Word file.
"""

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Characters of a block, beyond which it is several: what a tokenizer is given at once.
LONGEST = 1 << 16


@dataclass(frozen=True)
class Piece:
    """A run of a block's text and what it stands for.

    Args:
        text: Where it begins in the text.
        start: Position where it begins in the document.
        end: Position where it ends there.
    """

    text: int
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """A paragraph, list, table row or definition.

    Args:
        text: Its text.
        start: Position where it begins in the document.
        end: Position where it ends.
        headings: The headings above it, the outermost first; of code the names of classes and functions.
        page: Number of the page, from 1; positions are then those in the page's text.
        row: Number of the row of a table, from 1; a chunk has no more than one.
        pieces: The runs that the text consists of; empty if its parts have no positions of their own.
        flows: Whether line ends and repeated spaces mean nothing.
        section: How many headings stand before it: two of one text are two sections.
    """

    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()
    page: int | None = None
    row: int | None = None
    pieces: Sequence[Piece] = ()
    flows: bool = False
    section: int = 0

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """(start, end) in the document of the characters from `begin` to `end` of the text."""
        if not self.pieces:
            return self.start, self.end
        return self._position(begin, False), self._position(end - 1, True)

    def _position(self, at: int, behind: bool) -> int:
        number = max(bisect_right(self.pieces, at, key=lambda piece: piece.text) - 1, 0)
        piece = self.pieces[number]
        following = self.pieces[number + 1].text if number + 1 < len(self.pieces) else len(self.text)
        if piece.end - piece.start == following - piece.text:
            return piece.start + at - piece.text + behind
        return piece.end if behind else piece.start  # a character reference, or nothing


@dataclass
class Extraction:
    """What is in a document.

    Args:
        blocks: Its blocks in order.
        unit: What positions count: characters or paragraphs.
        dropped: Reason -> number of blocks, pages or rows that are left out.
    """

    blocks: list[Block] = field(default_factory=list)
    unit: str = "characters"
    dropped: Counter[str] = field(default_factory=Counter)


def verbatim(
    text: str,
    start: int,
    end: int,
    headings: tuple[str, ...] = (),
    *,
    page: int | None = None,
    flows: bool = False,
    section: int = 0,
) -> Block | None:
    """The block from `start` to `end` of a document's text, without blank lines around it; None if it is blank."""
    part = text[start:end].rstrip()
    blank = len(part) - len(part.lstrip())
    begin = part.rfind("\n", 0, blank) + 1
    if not part:
        return None
    pieces = (Piece(0, start + begin, start + len(part)),)
    return Block(
        part[begin:], pieces[0].start, pieces[0].end, headings, page, pieces=pieces, flows=flows, section=section
    )


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line, whatever separates lines, and where it begins."""
    at = 0
    for line in text.splitlines(keepends=True):
        yield at, line
        at += len(line)


def line_starts(text: str, ends: str = r"\r\n?|\n") -> list[int]:
    """Where each line begins, and where the text ends; `ends` is what ends a line."""
    return [0, *(found.end() for found in re.finditer(ends, text)), len(text)]


def fed_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line that a line feed ends, and where it begins."""
    starts = line_starts(text, "\n")
    yield from ((begin, text[begin:end]) for begin, end in itertools.pairwise(starts) if begin < end)


def paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where each run of lines that are not blank begins and ends."""
    begin = None
    for at, line in numbered_lines(text):
        if not line.isspace():
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(text)


def below(headings: Sequence[tuple[int, str]], level: int, heading: str) -> list[tuple[int, str]]:
    """The headings (level, text) that hold after a new one: it, and those above it of a smaller level."""
    return [each for each in headings if each[0] < level] + [(level, " ".join(heading.split()))]


def path_of(headings: Sequence[tuple[int, str]], title: str = "") -> tuple[str, ...]:
    """The path of headings, below the document's title unless that names the first of them."""
    path = tuple(text for _, text in headings if text)
    title = " ".join(title.split())
    return path if not title or (path and path[0] in title) else (title, *path)
