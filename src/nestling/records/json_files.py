"""Rows of JSONL files and of files that hold one JSON array."""

import codecs
import itertools
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from nestling.records.fields import NumberedRows, Row
from nestling.records.lines import byte_progress, open_bytes, read_lines
from nestling.records.record import FieldError, located


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """An object of its keys and values, each of which may be given once."""
    row = dict(pairs)
    if len(row) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FieldError(repeated, "given twice in one object; expected each key once")
    return row


JSON_SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(object_pairs_hook=_object)
BLOCK_BYTES = 1 << 20  # that are read at a time from a file with one JSON array


def read_jsonl(path: Path, progress: bool = False) -> NumberedRows:
    """Read one JSON object per line, or objects over several lines if the first is one; blank lines are skipped."""
    first = True
    for number, line in read_lines(path, progress):
        if line.isspace():
            continue
        if first and _runs_on(line):
            yield from read_json_objects(path, progress)
            return
        first = False
        with located(str(path), number):
            row = _parse(line)
        yield number, row


def read_json(path: Path, progress: bool = False) -> NumberedRows:
    """Read one JSON array of objects, or objects as `read_jsonl` does."""
    return read_json_array(path, progress) if begins_with_bracket(path) else read_jsonl(path, progress)


def read_json_objects(path: Path, progress: bool = False) -> NumberedRows:
    """Read the objects of a file one after another, each over any number of lines."""
    with closing(_text_blocks(path, progress)) as blocks:
        window = _Window(blocks)
        while window.peek():
            line = window.line
            with located(str(path), line):
                row = window.decode_object()
            yield line, row


def begins_with_bracket(path: Path) -> bool:
    """Whether the first character of a file that is not white space is an opening bracket."""
    return next((line.lstrip()[0] for _, line in read_lines(path) if line.strip()), "") == "["


def read_json_array(path: Path, progress: bool = False) -> NumberedRows:
    """Read the objects of one JSON array, decoded one at a time from a sliding window over the file."""
    with closing(_text_blocks(path, progress)) as blocks:
        window = _Window(blocks)
        yield from _elements(path, window)
        _check_end(path, window)


def read_json_members(path: Path, streamed: str, progress: bool = False) -> Generator[tuple[str, int, Any], None, None]:
    """Read the members of one JSON object as (key, line, value); an array of objects under `streamed` one at a time.

    In memory is one member, or one object of the streamed array.
    """
    with closing(_text_blocks(path, progress)) as blocks:
        window = _Window(blocks)
        keys: set[str] = set()
        while _enter(path, window, "{}", first=not keys):
            with located(str(path), window.line):
                if window.peek() != '"':
                    raise FieldError("line", f"broken JSON: expected a key in quotation marks, got {window.peek()!r}")
                key = window.decode()
                if key in keys:
                    raise FieldError(key, "given twice in one object; expected each key once")
                keys.add(key)
                window.expect(window.peek(), ":")
                begin = window.peek()
                if key == streamed and begin != "[":
                    raise FieldError(key, "expected a list of objects")
            if key == streamed:
                yield from ((key, line, row) for line, row in _elements(path, window))
                continue
            line = window.line
            with located(str(path), line):
                value = window.decode()
            yield key, line, value
        _check_end(path, window)


def _elements(path: Path, window: "_Window") -> NumberedRows:
    """The objects of the array at the position of the window, which is behind the array at the end."""
    first = True
    while _enter(path, window, "[]", first):
        first = False
        line = window.line
        with located(str(path), line):
            row = window.decode_object()
        yield line, row


def _enter(path: Path, window: "_Window", brackets: str, first: bool) -> bool:
    """Move to the beginning of the next element or member; False, behind the closing bracket, if there is none."""
    with located(str(path), window.line):
        character = window.peek()
    with located(str(path), window.line):
        if first or character != brackets[1]:
            window.expect(character, brackets[0] if first else ",")
            character = window.peek()
            if not (first and character == brackets[1]):
                return True
        window.position += 1
        return False


def _check_end(path: Path, window: "_Window") -> None:
    with located(str(path), window.line):
        if window.peek():
            raise FieldError("line", "broken JSON: more text after the end")


class _Window:
    """A sliding window over a JSON text that keeps track of the line number.

    Args:
        blocks: The text, in blocks of any size.

    Attributes:
        buffer: The part of the text in memory.
        position: Index in the buffer of the next character to read.
        line: 1-based number of the line that this character is on.
    """

    def __init__(self, blocks: Iterator[str]) -> None:
        self.blocks, self.buffer, self.position, self.line = blocks, "", 0, 1

    def extend(self, blocks: int = 1) -> bool:
        """Discard the text before the position and append up to `blocks` blocks; False at the end of the text."""
        text = "".join(itertools.islice(self.blocks, blocks))
        self.buffer, self.position = self.buffer[self.position :] + text, 0
        return bool(text)

    def peek(self) -> str:
        """Skip white space and return the next character without consuming it; "" at the end of the text."""
        while True:
            space = JSON_SPACE.match(self.buffer, self.position)
            assert space is not None
            self._advance(space.end())
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self.extend():
                return ""

    def expect(self, character: str, wanted: str) -> None:
        """Consume `character`, which was peeked; FieldError if it is not `wanted`."""
        if character != wanted:
            raise FieldError("line", f"broken JSON: expected {wanted!r}, got {character or 'the end'!r}")
        self.position += 1

    def decode_object(self) -> Row:
        """Decode the object at the position."""
        return _check_object(self.decode())

    def decode(self) -> Any:
        """Decode the value at the position; while it may be incomplete, retry with twice as many more blocks."""
        blocks = 1
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.position)
            except FieldError:
                raise
            except (ValueError, RecursionError) as error:
                reason, incomplete = _reason(error, self.position), isinstance(error, json.JSONDecodeError)
                if not (incomplete and self.extend(blocks)):
                    raise FieldError("line", f"broken JSON: {reason}") from None
                blocks *= 2
            else:
                if end == len(self.buffer) and isinstance(value, int | float) and self.extend():
                    continue  # a number may go on in the next block
                self._advance(end)
                return value

    def _advance(self, to: int) -> None:
        self.line += self.buffer.count("\n", self.position, to)
        self.position = to


def _text_blocks(path: Path, progress: bool) -> Generator[str, None, None]:
    lines, decoder = 1, codecs.getincrementaldecoder("utf-8-sig")()
    with open_bytes(path) as (stream, raw), byte_progress(path, progress) as bar:
        for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
            try:
                yield decoder.decode(block)
            except UnicodeDecodeError as error:
                line = lines + block.count(b"\n", 0, error.start)
                raise ValueError(f"{path}:{line}: line: invalid UTF-8") from None
            lines += block.count(b"\n")
            bar.update(raw.tell() - bar.n)


def _runs_on(line: str) -> bool:
    """Whether a line begins a JSON object that ends in a later line."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line.lstrip().startswith("{") and error.pos >= len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def _parse(line: str) -> Row:
    try:
        row = DECODER.decode(line)
    except FieldError:
        raise
    except (ValueError, RecursionError) as error:
        raise FieldError("line", f"broken JSON: {_reason(error)}") from None
    return _check_object(row)


def _reason(error: Exception, start: int = 0) -> str:
    """Why a row that begins at character `start` of the decoded text is not valid JSON.

    The line and column that JSONDecodeError gives count from the start of the buffer, so they are replaced by the
    character of the row. Besides it, json raises ValueError for a number with thousands of digits, and RecursionError.
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} at character {error.pos - start + 1} of the row"


def _check_object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise FieldError("line", f"expected an object with named fields, got {type(row).__name__}")
    return row
