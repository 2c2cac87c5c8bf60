"""Markdown as blocks: paragraphs, lists, tables and code, below their headings."""

import re
from collections import Counter

from markdown_it import MarkdownIt

from nestling.documents.blocks import Extraction, below, line_starts, path_of, verbatim

# A line is matched in one way only: with a carriage return that "." takes too, a page of n lines without an end of its
# settings would be tried in 2 ** n ways.
FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(?:[^\n]*\n)*?---[ \t]*(?:\r?\n|\Z)")
MARKS = re.compile(r"[`*]|(?<=\s)#+\s*\Z")


def read_markdown(text: str) -> Extraction:
    """The blocks of a Markdown document, as they are written; settings at its beginning are left out."""
    found = FRONT_MATTER.match(text)
    body = found.end() if found else 0
    extraction = Extraction(dropped=Counter({"settings before a page": 1} if found else {}))
    # Inline marks stay, and need not be parsed. A tab or a line end of Windows keeps its place: lines are counted.
    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    starts = [body + each for each in line_starts(text[body:])]
    headings: list[tuple[int, str]] = []
    section = 0
    tokens = parser.parse(text[body:])
    for number, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        if token.type == "heading_open":
            headings = below(headings, int(token.tag[1]), MARKS.sub("", tokens[number + 1].content))
            section += 1
            continue
        first, last = token.map
        begin, end = starts[first], starts[min(last, len(starts) - 1)]
        block = verbatim(text, begin, end, path_of(headings), section=section)
        extraction.blocks += [block] if block else []
    return extraction
