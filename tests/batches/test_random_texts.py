"""Texts of random words in the batches of an embedder."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nestling.batches.embed_collation import EmbedBatch, EmbedCollator
from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.batches.random_texts import TEXTS, RandomTexts, words
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.records import load_records

BATCH = BatchIndices(0, [3, 1, 0, 2], [0, 0, 0, 0])


@pytest.fixture(params=["bert", "qwen3"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(AutoTokenizer.from_pretrained(request.getfixturevalue(request.param)), require_end=True)


def draw(tokenizer: TextTokenizer, seed: int = 0, max_length: int = 32) -> RandomTexts:
    return RandomTexts.draw(tokenizer, "D: ", max_length, seed)


def test_words_are_the_tokens_of_three_letters_or_more(tokenizer: TextTokenizer) -> None:
    found = words(tokenizer)
    assert len(found) == len(set(found)) > 20
    assert all(word.isalpha() and len(word) >= 3 for word in found)
    vocabulary = {token.lstrip("Ġ") for token in tokenizer.backend.get_vocab()}
    assert {"query", "the"} & set(found) and {word for word in found if word.isascii()} <= vocabulary


def test_texts_are_those_of_the_seed_and_no_longer_than_they_may_be(tokenizer: TextTokenizer) -> None:
    drawn = draw(tokenizer)
    assert drawn.ids == draw(tokenizer).ids != draw(tokenizer, seed=1).ids
    assert len(drawn.ids) == TEXTS
    assert max(map(len, draw(tokenizer, max_length=20).ids)) == 20 > min(map(len, drawn.ids))
    text = tokenizer.backend.decode(drawn.ids[0])
    assert text.replace(" ", "").lower().startswith("d:") and len(text.split()) > 4


def test_a_batch_has_as_many_as_queries_and_each_batch_others(tokenizer: TextTokenizer) -> None:
    drawn = draw(tokenizer)
    rows = drawn.rows(BATCH)
    assert rows == draw(tokenizer).rows(BATCH) and len(rows) == 4 and all(0 <= row < TEXTS for row in rows)
    assert rows != drawn.rows(BatchIndices(0, BATCH.rows, [1, 1, 1, 1]))
    assert rows != drawn.rows(BatchIndices(1, BATCH.rows, BATCH.row_epochs))
    assert rows != draw(tokenizer, seed=1).rows(BATCH)


def test_a_model_whose_tokens_are_no_words_is_refused() -> None:
    letters = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("abc[")}, unk_token="["))
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="["), require_end=False)
    with pytest.raises(ValueError, match=r"loss\.retention_weight: no token of the model is a word of 3 letters"):
        draw(tokenizer)


@pytest.mark.parametrize("padding_free", [False, True])
def test_ranks_have_their_part_of_them_behind_their_own_texts(
    tokenizer: TextTokenizer, padding_free: bool, tmp_path: Path
) -> None:
    rows = [{"query": f"query {i}", "positives": [f"text {i // 2}"], "negatives": ["other"]} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources, drawn = [Source(load_records(tmp_path / "rows.jsonl", progress=False))], draw(tokenizer)

    def collate(random_texts: RandomTexts | None, rank: int = 0, ranks: int = 1) -> EmbedBatch:
        return EmbedCollator(
            sources,
            RowSampler(positives=1, negatives=1, seed=0),
            tokenizer,
            Prompts("Q: ", "D: "),
            query_max_length=32,
            document_max_length=32,
            chunk_tokens=64,
            padding_free=padding_free,
            random_texts=random_texts,
            rank=rank,
            world_size=ranks,
        )[BATCH]

    whole, plain = collate(drawn), collate(None)
    assert plain.retained is None and whole.retained is not None
    assert whole.retained[1].tolist() == drawn.rows(BATCH)
    assert torch.equal(whole.queries, plain.queries) and torch.equal(whole.documents, plain.documents)
    ids = whole.tokens.ids()
    assert [ids[at] for at in whole.retained[0]] == [drawn.ids[row] for row in whole.retained[1]]
    assert ids[: len(plain.tokens.ids())] == plain.tokens.ids()
    parts = [collate(drawn, rank, 2).retained for rank in (0, 1)]
    assert [row for part in parts if part is not None for row in part[1].tolist()] == drawn.rows(BATCH)
