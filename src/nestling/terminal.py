"""Texts on a terminal: control characters of data, file names and servers' answers are shown and not obeyed."""

import re
import sys
from typing import Any, TextIO, cast

# Controls except tab and line feed, marks that reorder or break lines, and halves of surrogate pairs.
CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
COLOURS = re.compile(r"\x1b\[[\d;]*m")
# What tqdm writes before a bar, and to move between bars.
BAR_MOVES = re.compile(r"\r|(?:\x1b\[A)+\Z")


def printable(text: str) -> str:
    r"""The text with control characters as escapes such as \x1b; tabs and line feeds stay."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """A text stream that writes `printable` text; colours, which libraries use, are left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        moves = BAR_MOVES.match(text)
        begin = moves.end() if moves else 0
        self._stream.write(text[:begin] + printable(COLOURS.sub("", text[begin:])))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_printable() -> None:
    """Replace stdout and stderr by `PrintableStream`s, for whatever prints, tracebacks and progress bars included."""
    if not isinstance(sys.stdout, PrintableStream):
        sys.stdout = cast(TextIO, PrintableStream(sys.stdout))
    if not isinstance(sys.stderr, PrintableStream):
        sys.stderr = cast(TextIO, PrintableStream(sys.stderr))
