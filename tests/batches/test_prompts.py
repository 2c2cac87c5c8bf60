"""Truncation of long texts: the time of tokenising their beginning, the tokens of tokenising all of them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nestling.batches.prompts import TextTokenizer


def tokenizer(model: Path, *, require_end: bool = False) -> TextTokenizer:
    return TextTokenizer(AutoTokenizer.from_pretrained(model), require_end=require_end)


def tokens_of_all(of: TextTokenizer, text: str, max_length: int) -> list[int]:
    """Token ids of the whole text, truncated by the tokenizer itself."""
    of.backend.enable_truncation(max_length)
    ids: list[int] = of.backend.encode(text).ids
    return ids


def test_ten_megabytes_are_truncated_and_counted(bert: Path, qwen3: Path) -> None:
    text = "find lines, list files: " * 400_000
    for of in (tokenizer(bert), tokenizer(qwen3, require_end=True)):
        found = of([text, "list files"], 24)
        assert found.ids == [tokens_of_all(of, text[:2_000], 24), tokens_of_all(of, "list files", 24)]
        assert len(found.ids[0]) == 24
        assert found.truncated == 1


@pytest.mark.parametrize("start", [4, 100, 255, 256, 257, 400, 410, 413, 500, 509, 511, 512, 600])
def test_a_word_that_is_cut_at_first_is_tokenised_whole(start: int, bert: Path) -> None:
    """BERT makes one unknown token of a word above 100 characters, and other tokens of its beginning."""
    of = tokenizer(bert)
    text = "a a".ljust(start) + "a" * 120 + " a a a"  # five tokens are looked for in the first 512 characters
    assert of([text], 5).ids == [tokens_of_all(of, text, 5)]
