"""Bytes as text: the encoding told, and where in the bytes a character stands."""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass

from charset_normalizer import from_bytes

from nestling.documents.refusals import RefusedError

BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# What a byte means depends on those before it, so that no place in a file could be read alone.
WITH_STATE = ["utf_7", "hz", *(f"iso2022_jp{kind}" for kind in ("", "_1", "_2", "_2004", "_3", "_ext")), "iso2022_kr"]
# <meta charset="…">, <?xml encoding="…"?> and Python's # coding: …
DECLARATION = re.compile(rb"(?:charset|coding)[ \t]*[:=][ \t]*[\"']?([\w.-]+)", re.IGNORECASE)
DECLARED_WITHIN = 1024
SAMPLE = 1 << 16  # bytes that an encoding is told by


@dataclass(frozen=True)
class Decoded:
    """A text and the bytes that it stands for.

    Args:
        text: The text, line ends as they are.
        encoding: Python's name of the encoding.
        begin: Bytes before the text, of a byte order mark.
    """

    text: str
    encoding: str
    begin: int

    def byte_offsets(self, positions: Iterable[int]) -> dict[int, int]:
        """Position of a character -> offset of its first byte."""
        offsets, last, offset = {}, 0, self.begin
        for position in sorted(set(positions)):
            offset += len(self.text[last:position].encode(self.encoding))
            last = position
            offsets[position] = offset
        return offsets


def decode(data: bytes) -> Decoded:
    """Decode a file: by its byte order mark, as UTF-8, as it declares, or as what charset-normalizer takes it for.

    Raises:
        RefusedError: It is no text, or in no encoding that could be told.
    """
    for bom, encoding in BOMS.items():
        if data.startswith(bom):
            return Decoded(_strict(data[len(bom) :], encoding), encoding, len(bom))
    if b"\0" in data:
        raise RefusedError("no text", "it holds zero bytes")
    try:
        return Decoded(data.decode("utf-8"), "utf-8", 0)
    except UnicodeDecodeError:
        declared = _declared(data)
    if declared is not None:
        return declared
    best = from_bytes(_sample(data), cp_exclusion=WITH_STATE).best()
    if best is None:
        raise RefusedError("encoding unknown")
    return Decoded(_strict(data, best.encoding), best.encoding, 0)


def _declared(data: bytes) -> Decoded | None:
    """The text in the encoding that a web page or source code says that it has, if it does and is right."""
    found = DECLARATION.search(data[:DECLARED_WITHIN])
    if found is None:
        return None
    try:
        encoding = codecs.lookup(found[1].decode()).name.replace("-", "_")
        return None if encoding in WITH_STATE else Decoded(data.decode(encoding), encoding, 0)
    except (LookupError, UnicodeDecodeError):
        return None


def _sample(data: bytes) -> bytes:
    """Whole lines, the first of them with bytes beyond ASCII: those before it tell nothing."""
    first = next(at for at, byte in enumerate(data) if byte > 127)
    begin = data.rfind(b"\n", 0, first) + 1
    sample = data[begin : begin + SAMPLE]
    return sample[: sample.rfind(b"\n") + 1] or sample


def _strict(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RefusedError("encoding unknown", f"taken for {encoding}, but {error.reason}") from None
