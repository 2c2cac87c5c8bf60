"""How blocks are packed and cut: by the tokens of a model or by words, at sentences, with overlap, losing nothing."""

import itertools
from pathlib import Path

import pytest

from nestling.documents.blocks import LONGEST, Block, verbatim
from nestling.documents.chunks import Chunker, parts, windows
from nestling.documents.tokens import ModelTokens, Words


def block(text: str, *headings: str) -> Block:
    return Block(text, 0, len(text), headings)


def texts(max_tokens: int, overlap: int, *blocks: Block) -> list[str]:
    return [chunk.text for chunk in Chunker(Words(), max_tokens, overlap).chunks(blocks)]


def test_blocks_of_one_heading_are_together_as_long_as_they_fit() -> None:
    assert texts(8, 0, block("a b c", "x"), block("d e", "x"), block("f g h", "x"), block("i", "y")) == [
        "a b c\n\nd e",  # 7 words beside the title
        "f g h",
        "i",
    ]


def test_a_title_takes_half_of_a_chunk_at_most() -> None:
    assert texts(8, 0, block("a b c d e", *"uvwxyz")) == ["a b c d", "e"]


def test_a_long_block_is_cut_at_sentences_and_overlaps() -> None:
    assert texts(8, 2, block("a b c d e f. g h i j k l")) == ["a b c d e f.", "e f. g h i j k l"]
    assert texts(8, 2, block("a b c d e f\ng h i j k l")) == ["a b c d e f", "e f\ng h i j k l"]
    assert texts(8, 0, block("a. b c d e f g h i j")) == ["a. b c d e f g h", "i j"]


def test_windows_cover_every_token_and_advance() -> None:
    text = " ".join(f"w{number}." if number % 7 == 0 else f"w{number}" for number in range(500))
    (spans,) = Words().spans([text])
    for size, overlap in ((1, 0), (4, 1), (10, 2), (100, 25)):
        found = list(windows(text, spans, size, overlap))
        assert found[0][0] == 0 and found[-1][1] == len(spans)
        for (first, last), (following, _) in itertools.pairwise(found):
            assert first < following <= last and last - following <= overlap and last - first <= size


def test_scripts_without_spaces_are_counted_by_characters() -> None:
    assert texts(8, 0, block("東京は日本の首都です")) == ["東京は日本の首都", "です"]


def test_a_line_without_end_is_given_to_the_tokenizer_in_parts() -> None:
    long = block("x" * (LONGEST + 5) + " y")
    assert [end - begin for _, begin, end in parts(long)] == [LONGEST, 7]
    assert "".join(long.text[begin:end] for _, begin, end in parts(long)) == long.text


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_chunks_fit_the_model_that_they_are_counted_by(name: str, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(name)
    tokens = ModelTokens(str(model))
    text = " ".join(f"Swallows built nests of mud, and returned: year {number}!" for number in range(30))
    found = verbatim(text, 0, len(text), ("birds of the country",))
    assert found is not None
    chunks = list(Chunker(tokens, 40, 5).chunks([found]))
    assert len(chunks) > 5
    for chunk in chunks:
        (of_text,), (of_title,) = tokens.spans([chunk.text]), tokens.spans([chunk.title])
        assert len(of_text) + len(of_title) + tokens.special <= 40
        assert text[chunk.start : chunk.end].strip() == chunk.text
    assert (chunks[0].start, chunks[-1].end) == (0, len(text))
    assert all(later.start <= earlier.end + 1 for earlier, later in itertools.pairwise(chunks))
    assert any(later.start < earlier.end for earlier, later in itertools.pairwise(chunks))
