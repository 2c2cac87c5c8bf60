"""Prompts of a yes/no reranker: the format of Qwen3-Reranker, byte for byte, within length limits.

Only the query and the document are truncated. The prefix, the instruction and the suffix never are: the model answers
at the last token of the suffix.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from nestling.batches.prompts import (
    DEFAULT_INSTRUCTION,
    characters_to_read,
    copy_backend,
    encode_truncated,
    padding_id,
)

DEFAULT_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
DEFAULT_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
BEFORE_DOCUMENT = "\n<Document>: "


@dataclass(frozen=True)
class RerankPrompt:
    """The prompt for a query and a document: prefix + body + suffix, after which the model answers yes or no.

    Args:
        prefix: Text before the body.
        suffix: Text after the body.
        instruction: Instruction of a query that has none.
    """

    prefix: str = DEFAULT_PREFIX
    suffix: str = DEFAULT_SUFFIX
    instruction: str = DEFAULT_INSTRUCTION

    def body(self, query: str, document: str, instruction: str | None = None) -> str:
        """Instruction, query and document, separated by single line breaks as in Qwen3-Reranker's training."""
        return f"{self.before_query(instruction)}{query}{BEFORE_DOCUMENT}{document}"

    def before_query(self, instruction: str | None = None) -> str:
        """The part of the body before the query."""
        return f"<Instruct>: {self.instruction if instruction is None else instruction}\n<Query>: "


@dataclass(frozen=True)
class TokenizedPairs:
    """Tokenised prompts of one query with each of its documents.

    Args:
        ids: Token ids of the whole prompts, one for each document.
        truncated_query: Whether the query was truncated.
        truncated_documents: How many documents were truncated.
    """

    ids: list[list[int]]
    truncated_query: bool
    truncated_documents: int


class Pairs(Protocol):
    """What makes token ids of a query with each of its documents, for one kind of reranker.

    Attributes:
        backend: The tokenizer.
        pad_id: Token that pads.
    """

    backend: Tokenizer
    pad_id: int

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        query_max_length: int,
        document_max_length: int,
    ) -> TokenizedPairs: ...

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens beside those of the query and the document."""
        ...


class PairTokenizer:
    """Tokenises the prompts of a query and its documents as the published example code of Qwen3-Reranker does.

    The prefix, the body and the suffix are tokenised separately and concatenated. The body is tokenised as one string,
    because byte pairs merge across its boundaries, as after `<Document>: `; a token counts towards the text in which it
    starts.

    Args:
        tokenizer: A fast tokenizer; it is copied, and its own truncation, padding and special tokens are not used.
        prompt: The prompt format.
        yes: The answer for a relevant document; one token.
        no: The answer for any other document; one token, not that of `yes`.

    Raises:
        ValueError: `yes` or `no` is not a single token, or both are the same token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: RerankPrompt, *, yes: str = "yes", no: str = "no"
    ) -> None:
        self.backend = copy_backend(tokenizer)
        self.prompt = prompt
        self.pad_id = padding_id(tokenizer)
        self.yes_id, self.no_id = self._answer_id(yes), self._answer_id(no)
        if self.yes_id == self.no_id:
            raise ValueError(f"{yes!r} and {no!r} are the same token, {self.yes_id}; the answers must be two tokens")
        self._prefix, self._suffix = self._encode(prompt.prefix).ids, self._encode(prompt.suffix).ids

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        query_max_length: int,
        document_max_length: int,
    ) -> TokenizedPairs:
        """Prompts of `query` with each of `documents`.

        Args:
            query: The query; truncation keeps its end.
            documents: The documents; truncation keeps their beginnings.
            instruction: The query's instruction; None for that of the prompt format.
            query_max_length: Tokens that may start in the query.
            document_max_length: Tokens that may start in a document.

        Raises:
            ValueError: A maximum length below 1.
        """
        require_lengths(query_max_length, document_max_length)
        kept_query = keep_end(query, query_max_length, partial(self._token_starts, instruction=instruction))
        prefix = self.prompt.body(kept_query, "", instruction)

        def kept_tokens(encoding: Encoding) -> int:
            return bisect_left(encoding.offsets, (len(prefix), 0)) + document_max_length

        def end_of_kept(encoding: Encoding) -> int | None:
            kept = kept_tokens(encoding)
            return encoding.offsets[kept - 1][1] if len(encoding.ids) >= kept else None

        encodings = encode_truncated(
            self.backend, documents, document_max_length, end_of_kept, prefix=prefix, special_tokens=False
        )
        kept = [kept_tokens(encoding) for encoding in encodings]
        return TokenizedPairs(
            [self._prefix + each.ids[:end] + self._suffix for each, end in zip(encodings, kept, strict=True)],
            len(kept_query) < len(query),
            sum(len(each.ids) > end for each, end in zip(encodings, kept, strict=True)),
        )

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens of a prompt beside those of its query and its document."""
        return len(self._prefix) + len(self._encode(self.prompt.body("", "", instruction)).ids) + len(self._suffix)

    def _encode(self, text: str) -> Encoding:
        return self.backend.encode(text, add_special_tokens=False)

    def _answer_id(self, word: str) -> int:
        encoding = self._encode(word)
        if len(encoding.ids) != 1:
            raise ValueError(
                f"the tokenizer splits the answer {word!r} into {encoding.tokens}; expected one token, "
                "choose another word"
            )
        return int(encoding.ids[0])

    def _token_starts(self, query: str, instruction: str | None) -> list[int]:
        """For each token that starts in the query, the character of the query at which it starts."""
        before = len(self.prompt.before_query(instruction))
        offsets = self._encode(self.prompt.body(query, "", instruction)).offsets
        return [start - before for start, _ in offsets if 0 <= start - before < len(query)]


def require_lengths(query_max_length: int, document_max_length: int) -> None:
    """Raise ValueError for a maximum length below 1."""
    for name, length in (("query_max_length", query_max_length), ("document_max_length", document_max_length)):
        if length < 1:
            raise ValueError(f"{name} is {length}; expected at least 1 token")


def keep_end(query: str, max_length: int, token_starts: Callable[[str], list[int]]) -> str:
    """A query, or the longest end of it in which at most `max_length` tokens start.

    `token_starts` gives the characters of a query at which its tokens start.
    """
    read = characters_to_read(max_length)
    end = query[-read:]
    starts = token_starts(end)
    # As in `encode_truncated`: the query may have been cut inside a word, whose tokens would differ.
    while read < len(query) and (len(starts) <= max_length or starts[-max_length] < read // 2):
        read *= 4
        end = query[-read:]
        starts = token_starts(end)
    # A shorter query may be tokenised differently than as part of a longer one, and several tokens may encode one
    # character: drop tokens until few enough are left.
    while len(starts) > max_length:
        dropped = starts[-max_length - 1]
        end = end[min((start for start in starts[-max_length:] if start > dropped), default=len(end)) :]
        starts = token_starts(end)
    return end
