"""Prompts of the reranker: the token ids of the published code, and truncation of the query and the document only."""

import pickle
import time
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestling.batches.pair_prompts import (
    DEFAULT_PREFIX,
    DEFAULT_SUFFIX,
    PairTokenizer,
    RerankPrompt,
    TokenizedPairs,
    keep_end,
)
from tiny import SENTENCES

DOCUMENTS = [
    "files",
    " : x",
    "",
    "\n\n<think> a </think>",
    "向量检索 🙂🙂",
    "cafe\u0301 e\u0301tude",
    ">: find",
    *SENTENCES,
]
DECOMPOSED = "e\u0301"  # two characters, one after normalisation


@pytest.fixture(scope="module")
def tokenizer(qwen3: Path) -> PreTrainedTokenizerBase:
    """A tokenizer like Qwen3-Embedding's: it appends a token to every text, which must not appear in the prompt."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(qwen3)
    return loaded


@pytest.fixture(scope="module")
def pairs(tokenizer: PreTrainedTokenizerBase) -> PairTokenizer:
    return PairTokenizer(tokenizer, RerankPrompt())


def public(
    tokenizer: PreTrainedTokenizerBase, query: str, document: str, instruction: str = RerankPrompt().instruction
) -> list[int]:
    """Token ids as the model card computes them: three texts tokenised separately, their ids concatenated."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return [id_ for part in (prefix, body, suffix) for id_ in tokenizer.encode(part, add_special_tokens=False)]


def tokenize(
    pairs: PairTokenizer,
    query: str,
    documents: list[str],
    *,
    query_max_length: int = 1000,
    document_max_length: int = 1000,
) -> TokenizedPairs:
    return pairs(query, documents, query_max_length=query_max_length, document_max_length=document_max_length)


def own_ids(pairs: PairTokenizer, head: str, text: str) -> list[int]:
    """Ids of the tokens of `head + text` that start in `text`."""
    encoding = pairs.backend.encode(head + text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    return [id_ for id_, start in zip(encoding.ids, starts, strict=True) if start >= len(head)]


@pytest.mark.parametrize("query", ["find files", "", " 檔案 🙂?\n", "a" * 300, f"caf{DECOMPOSED}"])
@pytest.mark.parametrize("instruction", [None, "Judge the command", ""])
def test_ids_are_those_of_the_published_code(
    query: str, instruction: str | None, tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer
) -> None:
    found = pairs(query, DOCUMENTS, instruction=instruction, query_max_length=1000, document_max_length=1000)
    wanted = RerankPrompt().instruction if instruction is None else instruction
    assert found.ids == [public(tokenizer, query, document, wanted) for document in DOCUMENTS]
    assert (found.truncated_query, found.truncated_documents) == (False, 0)


def test_a_token_merges_across_the_border_of_the_document(pairs: PairTokenizer) -> None:
    """This is why the part before the document and the document are not tokenised separately."""
    head = pairs.prompt.body("find", "")
    ids = tokenize(pairs, "find", ["files"]).ids[0]
    apart = [pairs.backend.encode(part, add_special_tokens=False).ids for part in (head, "files")]
    together = pairs.backend.encode(head + "files", add_special_tokens=False).tokens
    assert "Ġfil" in together
    assert len(ids) < len(pairs._prefix) + len(apart[0]) + len(apart[1]) + len(pairs._suffix)


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each])
def test_only_the_end_of_a_document_is_truncated(document: str, pairs: PairTokenizer) -> None:
    whole = tokenize(pairs, "find files", [document]).ids[0]
    head = pairs.prompt.body("find files", "")
    own = own_ids(pairs, head, document)
    suffix = pairs.backend.encode(DEFAULT_SUFFIX, add_special_tokens=False).ids
    before = whole[: len(whole) - len(own) - len(suffix)]
    for document_max_length in range(1, len(own) + 2):
        found = tokenize(pairs, "find files", [document], document_max_length=document_max_length)
        assert found.ids == [before + own[:document_max_length] + suffix]
        assert (found.truncated_query, found.truncated_documents) == (False, int(document_max_length < len(own)))


def test_truncated_documents_are_counted(pairs: PairTokenizer) -> None:
    found = tokenize(pairs, "find", ["files", SENTENCES[0], "", SENTENCES[1]], document_max_length=8)
    assert found.truncated_documents == 2
    assert tokenize(pairs, "find", []) == TokenizedPairs([], False, 0)


@pytest.mark.parametrize("query", [*SENTENCES, "🙂🙃🙂🙃", f"{DECOMPOSED * 9} 向量检索", "a" * 50, " \n " * 9])
def test_a_truncated_query_keeps_its_end(query: str, tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    def tokens(end: str) -> int:
        head = pairs.prompt.before_query()
        encoding = pairs.backend.encode(pairs.prompt.body(end, ""), add_special_tokens=False)
        return sum(len(head) <= start < len(head) + len(end) for start, _ in encoding.offsets)

    for document_max_length in (1, 2, 5, 8, tokens(query) - 1, tokens(query)):
        found = tokenize(pairs, query, ["files", SENTENCES[3]], query_max_length=document_max_length)
        ends = [query[start:] for start in range(len(query) + 1)]
        kept = next(end for end in ends if found.ids[0] == public(tokenizer, end, "files"))
        assert found.ids[1] == public(tokenizer, kept, SENTENCES[3])
        assert tokens(kept) <= document_max_length
        assert found.truncated_query == (len(kept) < len(query)) == (tokens(query) > document_max_length)
        # A character of several tokens cannot be cut in two; a word's end may make a token or two less than it did.
        assert tokens(kept) > document_max_length - 4


def test_query_and_document_can_both_be_truncated(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    found = tokenize(pairs, "find every file", [SENTENCES[0]], query_max_length=2, document_max_length=3)
    end = keep_end("find every file", 2, partial(pairs._token_starts, instruction=None))
    assert "find every file".endswith(end) and 0 < len(end) < len("find every file")
    head, own = pairs.prompt.body(end, ""), own_ids(pairs, pairs.prompt.body(end, ""), SENTENCES[0])
    whole = public(tokenizer, end, SENTENCES[0])
    assert own_ids(pairs, head, SENTENCES[0]) == own
    assert found.ids == [whole[: len(whole) - len(pairs._suffix) - len(own) + 3] + pairs._suffix]
    assert (found.truncated_query, found.truncated_documents) == (True, 1)


@pytest.mark.parametrize("unit", ["find lines, list files: ", "向量检索", "🙂", "a", " ", "\n", "yes\n\n", "-"])
def test_ten_megabytes_cost_no_more_than_a_long_text_and_give_its_tokens(unit: str, pairs: PairTokenizer) -> None:
    """The long text is shorter than the part of the huge one that is tokenised first."""
    long, huge = (unit * (size // len(unit)) for size in (700, 10_000_000))
    head = pairs.prompt.body("find files", "")
    as_document = tokenize(pairs, "find files", [huge, "files"], document_max_length=24)
    assert as_document.ids[0][len(pairs._prefix) : -len(pairs._suffix)][-24:] == own_ids(pairs, head, long)[:24]
    assert as_document.truncated_documents == 1
    assert tokenize(pairs, huge, ["files"], query_max_length=24) == tokenize(
        pairs, long, ["files"], query_max_length=24
    )
    started = time.process_time()
    tokenize(pairs, "find files", [huge], document_max_length=24)
    tokenize(pairs, huge, ["files"], query_max_length=24)
    short = time.process_time() - started
    started = time.process_time()
    pairs.backend.encode(huge[:200_000])
    assert short < time.process_time() - started  # a fiftieth of the text alone takes longer


@pytest.mark.parametrize("gap", [200, 400, 768, 800, 3000, 60_000])
def test_tokens_after_many_characters_without_one_are_found(gap: int, bert: Path) -> None:
    """BERT makes no tokens of spaces, so that the first or last characters of a text may have too few tokens."""
    of = PairTokenizer(AutoTokenizer.from_pretrained(bert), RerankPrompt(prefix="", suffix=""))
    text = "find" + " " * gap + "list files"
    wanted = own_ids(of, "", text)
    as_document = tokenize(of, "query", [text], document_max_length=len(wanted))
    assert as_document.ids[0][-len(wanted) :] == wanted
    assert as_document.truncated_documents == 0
    assert not tokenize(of, text, ["a"], query_max_length=len(wanted)).truncated_query
    cut = tokenize(of, text, ["a"], query_max_length=len(wanted) - 1)
    assert cut.truncated_query
    assert cut.ids == tokenize(of, "list files", ["a"]).ids


def test_overhead_is_a_prompt_without_texts(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    assert pairs.overhead() == len(public(tokenizer, "", ""))
    assert pairs.overhead("Judge") == len(public(tokenizer, "", "", "Judge")) < pairs.overhead()


def test_a_pickled_tokenizer_makes_the_same_prompts(pairs: PairTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(pairs))
    assert tokenize(copy, "find files", DOCUMENTS, document_max_length=5) == tokenize(
        pairs, "find files", DOCUMENTS, document_max_length=5
    )
    assert (copy.yes_id, copy.no_id, copy.pad_id, copy.prompt) == (
        pairs.yes_id,
        pairs.no_id,
        pairs.pad_id,
        pairs.prompt,
    )


def test_the_given_tokenizer_is_not_changed(qwen3: Path) -> None:
    given = AutoTokenizer.from_pretrained(qwen3)
    given.backend_tokenizer.enable_truncation(4)
    given.backend_tokenizer.enable_padding(length=64)
    ids = tokenize(PairTokenizer(given, RerankPrompt()), "find", ["a"]).ids
    assert given.backend_tokenizer.truncation["max_length"] == 4
    assert given.backend_tokenizer.padding["length"] == 64
    assert ids == [public(given, "find", "a")]


def test_answer_ids(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([pairs.yes_id, pairs.no_id]) == ["yes", "no"]
    assert pairs.pad_id == tokenizer.pad_token_id
    other = PairTokenizer(tokenizer, RerankPrompt(), yes="a", no="b")
    assert tokenizer.convert_ids_to_tokens([other.yes_id, other.no_id]) == ["a", "b"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"yes": "Yes"}, r"splits the answer 'Yes' into \['Y', 'es'\]"),
        ({"no": ""}, r"splits the answer '' into \[\]"),
        ({"no": "yes"}, "'yes' and 'yes' are the same token"),
    ],
)
def test_answers_are_two_tokens(answers: dict[str, str], message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=message):
        PairTokenizer(tokenizer, RerankPrompt(), **answers)


def test_maximum_lengths_are_at_least_one(pairs: PairTokenizer) -> None:
    with pytest.raises(ValueError, match="document_max_length is 0"):
        tokenize(pairs, "find", ["files"], document_max_length=0)
    with pytest.raises(ValueError, match="query_max_length is -1"):
        tokenize(pairs, "find", ["files"], query_max_length=-1)


def test_a_custom_prompt_format(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = RerankPrompt(prefix="user: ", suffix="\nanswer:", instruction="Judge")
    assert prompt.body("q", "d") == "<Instruct>: Judge\n<Query>: q\n<Document>: d"
    assert prompt.body("q", "d", "List") == "<Instruct>: List\n<Query>: q\n<Document>: d"
    (ids,) = tokenize(PairTokenizer(tokenizer, prompt), "q", ["d"]).ids
    assert tokenizer.decode(ids) == "user: <Instruct>: Judge\n<Query>: q\n<Document>: d\nanswer:"


def test_the_chat_tokens_of_the_prompt_are_single(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = [each for part in (DEFAULT_PREFIX, DEFAULT_SUFFIX) for each in tokenizer.tokenize(part)]
    assert [each for each in tokens if each in tokenizer.get_added_vocab()] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "</think>",
    ]
