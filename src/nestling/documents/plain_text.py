"""Plain text and source code as blocks: paragraphs, and definitions."""

import ast
import itertools
from collections.abc import Iterator

from nestling.documents.blocks import Extraction, line_starts, numbered_lines, paragraphs, verbatim

Names = tuple[str, ...]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read_text(text: str) -> Extraction:
    """The paragraphs of a plain text."""
    return Extraction([block for start, end in paragraphs(text) if (block := verbatim(text, start, end))])


def read_code(text: str) -> Extraction:
    """Source code of any language: what begins in the first column behind a blank line begins a block."""
    cuts, blank = [0], False
    for at, line in numbered_lines(text):
        if blank and not line[0].isspace():
            cuts.append(at)
        blank = line.isspace()
    blocks = (verbatim(text, start, end) for start, end in itertools.pairwise([*cuts, len(text)]))
    return Extraction([block for block in blocks if block])


def read_python(text: str) -> Extraction:
    """Functions and methods of Python, and what stands between them; as `read_code` if Python cannot parse it."""
    starts = line_starts(text)
    lines = [text[begin:end] for begin, end in itertools.pairwise(starts)]
    try:
        cuts = list(_cuts(ast.parse(text), (), lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return read_code(text)
    names: dict[int, Names] = {0: (), **dict(cuts)}  # of cuts in one line the last one holds
    ordered = [*sorted(names), len(starts) - 1]
    blocks = (verbatim(text, starts[line], starts[end], names[line]) for line, end in itertools.pairwise(ordered))
    return Extraction([block for block in blocks if block])


def _cuts(node: ast.Module | ast.ClassDef, names: Names, lines: list[str]) -> Iterator[tuple[int, Names]]:
    """(index of a line, names) where a definition in a module or class begins, and behind its end."""
    for each in node.body:
        if isinstance(each, DEFINITIONS):
            inner = (*names, each.name)
            yield _first_line(each, lines), inner
            if isinstance(each, ast.ClassDef):
                yield from _cuts(each, inner, lines)
            yield min(each.end_lineno or each.lineno, len(lines)), names


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]) -> int:
    """Index of the first line of a definition, its decorators and the comments right above it."""
    line = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line
