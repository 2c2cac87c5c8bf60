"""Pairs of an encoder are those of its tokenizer, and only texts that are too long are truncated."""

import pickle
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestling.batches.encoder_pairs import EncoderPairs, split_types
from tiny import SENTENCES

STRIDE = 1000
DOCUMENTS = ["files", "", " : x", "向量检索 🙂🙂", "cafe\u0301 e\u0301tude", "[SEP] in a text", *SENTENCES]


@pytest.fixture(scope="module")
def tokenizer(bert: Path) -> PreTrainedTokenizerBase:
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(bert))


def make(tokenizer: PreTrainedTokenizerBase, *, instruction: str = "", max_length: int = 128) -> EncoderPairs:
    return EncoderPairs(tokenizer, instruction=instruction, max_length=max_length, type_stride=STRIDE)


def public(tokenizer: PreTrainedTokenizerBase, query: str, document: str, **settings: object) -> list[int]:
    """Ids and types as the tokenizer gives them; in a list, since it takes a single empty document for none."""
    found = tokenizer([query], [document], **settings)
    return [i + STRIDE * kind for i, kind in zip(found["input_ids"][0], found["token_type_ids"][0], strict=True)]


@pytest.mark.parametrize("query", ["find every file", "", "人工智慧 [SEP] x", SENTENCES[3]])
def test_pairs_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase, query: str) -> None:
    pairs = make(tokenizer, max_length=10_000)
    found = pairs(query, DOCUMENTS, query_max_length=1000, document_max_length=1000)
    assert found.ids == [public(tokenizer, query, document) for document in DOCUMENTS]
    assert (found.truncated_query, found.truncated_documents) == (False, 0)
    assert max(max(ids) for ids in found.ids) >= STRIDE  # the second text's type


def test_document_is_truncated_first_as_the_tokenizer_does_with_short_queries(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    pairs, long = make(tokenizer, max_length=40), " ".join(["plates"] * 5000)
    found = pairs("find files", ["ls", long], query_max_length=512, document_max_length=512)
    assert found.ids[1] == public(tokenizer, "find files", long, truncation=True, max_length=40)
    assert (len(found.ids[1]), found.truncated_query, found.truncated_documents) == (40, False, 1)


def test_texts_have_limits_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = make(tokenizer)
    found = pairs("a b c d e f", ["g h i j", "k"], query_max_length=2, document_max_length=3)
    assert found.ids == [public(tokenizer, "e f", "g h i"), public(tokenizer, "e f", "k")]
    assert (found.truncated_query, found.truncated_documents) == (True, 1)


def test_query_leaves_a_token_for_the_document(tokenizer: PreTrainedTokenizerBase) -> None:
    found = make(tokenizer, max_length=12)("a b " * 50, ["c d"], query_max_length=512, document_max_length=512)
    assert len(found.ids[0]) == 12
    assert found.ids[0][-2] % STRIDE == tokenizer.convert_tokens_to_ids("c")


def test_instruction_is_written_before_the_query_and_never_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs, limits = make(tokenizer, instruction="judge files:"), {"query_max_length": 2, "document_max_length": 9}
    wanted = [public(tokenizer, f"{given} b c", "d") for given in ("judge files:", "find")]
    assert [pairs("a b c", ["d"], instruction=each, **limits).ids[0] for each in (None, "find")] == wanted
    plain = make(tokenizer)  # of a model that reads no instructions
    assert plain("a b c", ["d"], instruction="find", **limits).ids == [public(tokenizer, "b c", "d")]
    assert pairs.overhead() - pairs.overhead("") == len(tokenizer.tokenize("judge files:"))
    with pytest.raises(ValueError, match="'judge files: ' leaves no room for texts in the 7 tokens"):
        make(tokenizer, instruction="judge files:", max_length=7)("a", ["b"], **limits)


def test_types_are_taken_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    found = make(tokenizer)("a", ["b"], query_max_length=9, document_max_length=9).ids
    ids, types = split_types(torch.tensor(found), STRIDE)
    plain = tokenizer("a", "b")
    assert (ids[0].tolist(), types[0].tolist()) == (plain["input_ids"], plain["token_type_ids"])


def test_can_be_sent_to_a_worker(tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = make(tokenizer)
    limits = {"query_max_length": 9, "document_max_length": 9}
    assert pickle.loads(pickle.dumps(pairs))("a", ["b"], **limits) == pairs("a", ["b"], **limits)
