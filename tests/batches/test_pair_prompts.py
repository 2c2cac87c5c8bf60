"""Prompts of the reranker: the ids of the public usage, and budgets that cut only the query and the document."""

import pickle
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nestling.batches.pair_prompts import DEFAULT_PREFIX, DEFAULT_SUFFIX, PairTokenizer, RerankPrompt, TokenizedPairs
from tiny import SENTENCES

DECOMPOSED = "e\u0301"  # two characters, one after normalisation
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
    """Of Qwen3-Embedding's layout: it appends a token to every text, which no part of the prompt may have."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(qwen3)
    return loaded


@pytest.fixture(scope="module")
def pairs(tokenizer: PreTrainedTokenizerBase) -> PairTokenizer:
    return PairTokenizer(tokenizer, RerankPrompt())


def public(
    tokenizer: PreTrainedTokenizerBase, query: str, document: str, instruction: str = RerankPrompt().instruction
) -> list[int]:
    """The model card's way: three texts encoded apart, their ids joined."""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    body = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return [id_ for part in (prefix, body, suffix) for id_ in tokenizer.encode(part, add_special_tokens=False)]


def tokenize(
    pairs: PairTokenizer, query: str, documents: list[str], *, query_budget: int = 1000, budget: int = 1000
) -> TokenizedPairs:
    return pairs(query, documents, query_max_length=query_budget, document_max_length=budget)


def own_ids(pairs: PairTokenizer, head: str, text: str) -> list[int]:
    """Ids of the tokens that start in `text`, which stands after `head`."""
    encoding = pairs.backend.encode(head + text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    return [id_ for id_, start in zip(encoding.ids, starts, strict=True) if start >= len(head)]


@pytest.mark.parametrize("query", ["find files", "", " 檔案 🙂?\n", "a" * 300, f"caf{DECOMPOSED}"])
@pytest.mark.parametrize("instruction", [None, "Judge the command", ""])
def test_ids_are_those_of_the_public_usage(
    query: str, instruction: str | None, tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer
) -> None:
    found = pairs(query, DOCUMENTS, instruction=instruction, query_max_length=1000, document_max_length=1000)
    wanted = RerankPrompt().instruction if instruction is None else instruction
    assert found.ids == [public(tokenizer, query, document, wanted) for document in DOCUMENTS]
    assert (found.truncated_query, found.truncated_documents) == (False, 0)


def test_a_token_merges_across_the_border_of_the_document(pairs: PairTokenizer) -> None:
    """What would go wrong if head and document were encoded apart."""
    head = pairs.prompt.body("find", "")
    ids = tokenize(pairs, "find", ["files"]).ids[0]
    apart = [pairs.backend.encode(part, add_special_tokens=False).ids for part in (head, "files")]
    together = pairs.backend.encode(head + "files", add_special_tokens=False).tokens
    assert "Ġfil" in together
    assert len(ids) < len(pairs._prefix) + len(apart[0]) + len(apart[1]) + len(pairs._suffix)


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each])
def test_a_document_is_cut_at_its_end_and_nothing_else_is(document: str, pairs: PairTokenizer) -> None:
    whole = tokenize(pairs, "find files", [document]).ids[0]
    head = pairs.prompt.body("find files", "")
    own = own_ids(pairs, head, document)
    suffix = pairs.backend.encode(DEFAULT_SUFFIX, add_special_tokens=False).ids
    before = whole[: len(whole) - len(own) - len(suffix)]
    for budget in range(1, len(own) + 2):
        found = tokenize(pairs, "find files", [document], budget=budget)
        assert found.ids == [before + own[:budget] + suffix]
        assert (found.truncated_query, found.truncated_documents) == (False, int(budget < len(own)))


def test_cut_documents_are_counted(pairs: PairTokenizer) -> None:
    found = tokenize(pairs, "find", ["files", SENTENCES[0], "", SENTENCES[1]], budget=8)
    assert found.truncated_documents == 2
    assert tokenize(pairs, "find", []) == TokenizedPairs([], False, 0)


@pytest.mark.parametrize("query", [*SENTENCES, "🙂🙃🙂🙃", f"{DECOMPOSED * 9} 向量检索", "a" * 50, " \n " * 9])
def test_a_query_keeps_as_much_of_its_end_as_the_budget_allows(
    query: str, tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer
) -> None:
    def tokens(end: str) -> int:
        head = pairs.prompt.before_query()
        encoding = pairs.backend.encode(pairs.prompt.body(end, ""), add_special_tokens=False)
        return sum(len(head) <= start < len(head) + len(end) for start, _ in encoding.offsets)

    for budget in (1, 2, 5, 8, tokens(query) - 1, tokens(query)):
        found = tokenize(pairs, query, ["files", SENTENCES[3]], query_budget=budget)
        ends = [query[start:] for start in range(len(query) + 1)]
        kept = next(end for end in ends if found.ids[0] == public(tokenizer, end, "files"))
        assert found.ids[1] == public(tokenizer, kept, SENTENCES[3])
        assert tokens(kept) <= budget
        assert found.truncated_query == (len(kept) < len(query)) == (tokens(query) > budget)
        # A character of several tokens cannot be cut in two; a word's end may make a token or two less than it did.
        assert tokens(kept) > budget - 4


def test_both_can_be_cut_at_once(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    found = tokenize(pairs, "find every file", [SENTENCES[0]], query_budget=2, budget=3)
    end = pairs._end_of_query("find every file", 2, None)
    assert "find every file".endswith(end) and 0 < len(end) < len("find every file")
    head, own = pairs.prompt.body(end, ""), own_ids(pairs, pairs.prompt.body(end, ""), SENTENCES[0])
    whole = public(tokenizer, end, SENTENCES[0])
    assert own_ids(pairs, head, SENTENCES[0]) == own
    assert found.ids == [whole[: len(whole) - len(pairs._suffix) - len(own) + 3] + pairs._suffix]
    assert (found.truncated_query, found.truncated_documents) == (True, 1)


@pytest.mark.parametrize("unit", ["find lines, list files: ", "向量检索", "🙂", "a", " ", "\n", "yes\n\n", "-"])
def test_ten_megabytes_cost_no_more_than_a_long_text_and_give_its_tokens(unit: str, pairs: PairTokenizer) -> None:
    """The long text is shorter than what is read of the other at first."""
    long, huge = (unit * (size // len(unit)) for size in (700, 10_000_000))
    head = pairs.prompt.body("find files", "")
    as_document = tokenize(pairs, "find files", [huge, "files"], budget=24)
    assert as_document.ids[0][len(pairs._prefix) : -len(pairs._suffix)][-24:] == own_ids(pairs, head, long)[:24]
    assert as_document.truncated_documents == 1
    assert tokenize(pairs, huge, ["files"], query_budget=24) == tokenize(pairs, long, ["files"], query_budget=24)
    started = time.process_time()
    tokenize(pairs, "find files", [huge], budget=24)
    tokenize(pairs, huge, ["files"], query_budget=24)
    short = time.process_time() - started
    started = time.process_time()
    pairs.backend.encode(huge[:200_000])
    assert short < time.process_time() - started  # a fiftieth of the text alone takes longer


@pytest.mark.parametrize("gap", [200, 400, 768, 800, 3000, 60_000])
def test_tokens_after_many_characters_without_one_are_found(gap: int, bert: Path) -> None:
    """BERT makes no token of spaces: the first, or last, characters of a text may have too few."""
    of = PairTokenizer(AutoTokenizer.from_pretrained(bert), RerankPrompt(prefix="", suffix=""))
    text = "find" + " " * gap + "list files"
    wanted = own_ids(of, "", text)
    as_document = tokenize(of, "query", [text], budget=len(wanted))
    assert as_document.ids[0][-len(wanted) :] == wanted
    assert as_document.truncated_documents == 0
    assert not tokenize(of, text, ["a"], query_budget=len(wanted)).truncated_query
    cut = tokenize(of, text, ["a"], query_budget=len(wanted) - 1)
    assert cut.truncated_query
    assert cut.ids == tokenize(of, "list files", ["a"]).ids


def test_overhead_is_a_prompt_without_texts(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    assert pairs.overhead() == len(public(tokenizer, "", ""))
    assert pairs.overhead("Judge") == len(public(tokenizer, "", "", "Judge")) < pairs.overhead()


def test_copies_through_pickle_give_the_same(pairs: PairTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(pairs))
    assert tokenize(copy, "find files", DOCUMENTS, budget=5) == tokenize(pairs, "find files", DOCUMENTS, budget=5)
    assert (copy.yes_id, copy.no_id, copy.pad_id, copy.prompt) == (
        pairs.yes_id,
        pairs.no_id,
        pairs.pad_id,
        pairs.prompt,
    )


def test_the_tokenizer_given_is_left_alone(qwen3: Path) -> None:
    given = AutoTokenizer.from_pretrained(qwen3)
    given.backend_tokenizer.enable_truncation(4)
    given.backend_tokenizer.enable_padding(length=64)
    ids = tokenize(PairTokenizer(given, RerankPrompt()), "find", ["a"]).ids
    assert given.backend_tokenizer.truncation["max_length"] == 4
    assert given.backend_tokenizer.padding["length"] == 64
    assert ids == [public(given, "find", "a")]


def test_answers_are_looked_up(tokenizer: PreTrainedTokenizerBase, pairs: PairTokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([pairs.yes_id, pairs.no_id]) == ["yes", "no"]
    assert pairs.pad_id == tokenizer.pad_token_id
    other = PairTokenizer(tokenizer, RerankPrompt(), yes="a", no="b")
    assert tokenizer.convert_ids_to_tokens([other.yes_id, other.no_id]) == ["a", "b"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"yes": "Yes"}, r"\['Y', 'es'\] of the answer 'Yes'"),
        ({"no": ""}, r"\[\] of the answer ''"),
        ({"no": "yes"}, "'yes' and 'yes' are the same token"),
    ],
)
def test_answers_are_two_tokens(answers: dict[str, str], message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=message):
        PairTokenizer(tokenizer, RerankPrompt(), **answers)


def test_budgets_are_at_least_one(pairs: PairTokenizer) -> None:
    with pytest.raises(ValueError, match="document_max_length is 0"):
        tokenize(pairs, "find", ["files"], budget=0)
    with pytest.raises(ValueError, match="query_max_length is -1"):
        tokenize(pairs, "find", ["files"], query_budget=-1)


def test_a_prompt_of_ones_own(tokenizer: PreTrainedTokenizerBase) -> None:
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
