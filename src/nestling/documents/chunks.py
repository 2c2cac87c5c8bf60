"""Chunks: blocks below one heading, together as long as they fit; a longer block in windows that overlap."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nestling.documents.blocks import LONGEST, Block
from nestling.documents.tokens import Spans, Tokens

SEPARATOR = " > "  # between the headings of a title
ENDS = tuple(".!?…。！？")  # of sentences
# A window ends at the end of a line or sentence if there is one in its last quarter.
LAST_PART = 4
# Characters whose tokens are in memory at a time.
BATCH = 1 << 20

Part = tuple[Block, int, int]  # a block, and where in its text a part of it begins and ends


@dataclass(frozen=True)
class Chunk:
    """A text to search for.

    Args:
        title: The headings above it.
        text: Its text.
        start: Position where it begins in the document.
        end: Position where it ends.
        first: Its first block, which has its headings, page and row.
        tokens: Tokens of the text.
    """

    title: str
    text: str
    start: int
    end: int
    first: Block
    tokens: int


@dataclass(frozen=True)
class Chunker:
    """How documents are cut.

    Args:
        tokens: What counts tokens.
        max_tokens: Of a chunk with its title and what a model adds; half of it is left to the text in any case.
        overlap: Tokens that a window has in common with the one before.
    """

    tokens: Tokens
    max_tokens: int
    overlap: int

    def chunks(self, blocks: Iterable[Block]) -> Iterator[Chunk]:
        """The chunks of a document's blocks, none of which crosses a heading, a page or a row."""
        for (headings, *_), section in itertools.groupby(blocks, _place):
            title = SEPARATOR.join(headings)
            (of_title,) = self.tokens.spans([title])
            budget = max(self.max_tokens // 2, self.max_tokens - len(of_title) - self.tokens.special)
            yield from self._packed(title, budget, section)

    def _packed(self, title: str, budget: int, blocks: Iterable[Block]) -> Iterator[Chunk]:
        waiting: list[Part] = []
        count = 0
        for (block, begin, end), spans in self._tokenized(blocks):
            if waiting and count + len(spans) > budget:
                yield _chunk(title, waiting, count)
                waiting, count = [], 0
            if len(spans) > budget:
                text = block.text[begin:end]
                for first, last in windows(text, spans, budget, self.overlap):
                    start, stop = _start(text, spans[first][0]), spans[last][0] if last < len(spans) else len(text)
                    yield _chunk(title, [(block, begin + start, begin + stop)], last - first)
            else:
                waiting.append((block, begin, end))
                count += len(spans)
        if waiting:
            yield _chunk(title, waiting, count)

    def _tokenized(self, blocks: Iterable[Block]) -> Iterator[tuple[Part, Spans]]:
        """Parts of blocks, a few at a time, with their tokens."""
        batch: list[Part] = []
        size = 0
        for part in itertools.chain.from_iterable(map(parts, blocks)):
            batch.append(part)
            size += part[2] - part[1]
            if size >= BATCH:
                yield from self._with_tokens(batch)
                batch, size = [], 0
        yield from self._with_tokens(batch)

    def _with_tokens(self, batch: list[Part]) -> Iterator[tuple[Part, Spans]]:
        return zip(batch, self.tokens.spans([block.text[begin:end] for block, begin, end in batch]), strict=True)


def _place(block: Block) -> tuple[tuple[str, ...], int, int | None, int | None]:
    """What all blocks of a chunk have in common."""
    return block.headings, block.section, block.page, block.row


def parts(block: Block) -> Iterator[Part]:
    """A block in parts of at most `LONGEST` characters, which end at white space if there is any."""
    begin = 0
    while begin < len(block.text):
        end = begin + LONGEST
        if end < len(block.text):
            space = max(block.text.rfind(each, begin + 1, end) for each in " \n")
            end = end if space < 0 else space + 1
        yield block, begin, min(end, len(block.text))
        begin = end


def windows(text: str, spans: Spans, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """The first token of each window of a text, and the one behind its last."""
    first = 0
    while True:
        last = min(first + size, len(spans))
        if last < len(spans):
            last = _boundary(text, spans, first + size - size // LAST_PART, last)
        yield first, last
        if last == len(spans):
            return
        later = range(max(last - overlap, first + 1), last)
        first = next((token for token in later if _begins_word(text, spans[token][0])), max(last - overlap, first + 1))


def _boundary(text: str, spans: Spans, least: int, last: int) -> int:
    """The latest token from `least` to `last` that begins a line or sentence, or else a word; `last` if none does."""
    for token in range(last, least - 1, -1):
        before = text[spans[token - 1][0] : spans[token][0]]
        if "\n" in before or before.rstrip().endswith(ENDS):
            return token
    words = (token for token in range(last, least - 1, -1) if _begins_word(text, spans[token][0]))
    return next(words, last)


def _begins_word(text: str, start: int) -> bool:
    return text[start].isspace() or text[start - 1].isspace()


def _start(text: str, start: int) -> int:
    """Where a token begins without the space between words, which some tokenizers take in; indentation stays."""
    return start + (text[start] == " " and text[start + 1 : start + 2].strip() != "")


def _chunk(title: str, chosen: list[Part], tokens: int) -> Chunk:
    kept = [(block, begin, begin + len(block.text[begin:end].rstrip())) for block, begin, end in chosen]
    texts = [_cleaned(block.text[begin:end], block.flows) for block, begin, end in kept]
    spans = [block.span(begin, end) for block, begin, end in kept if begin < end]
    start, stop = (spans[0][0], spans[-1][1]) if spans else (chosen[0][0].start, chosen[0][0].start)
    return Chunk(title, "\n\n".join(filter(None, texts)), start, stop, chosen[0][0], tokens)


def _cleaned(text: str, flows: bool) -> str:
    return " ".join(text.split()) if flows else text.replace("\r\n", "\n").strip("\r\n").rstrip()
