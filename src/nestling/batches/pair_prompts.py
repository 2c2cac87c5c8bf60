"""What a yes/no reranker reads: the prompt of Qwen3-Reranker, byte for byte, within token budgets.

Only the query and the document are ever cut; the prefix, the instruction and the suffix, whose last token the answer
is read at, never are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from nestling.batches.prompts import (
    DEFAULT_INSTRUCTION,
    copy_backend,
    encode_beginnings,
    first_characters,
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
    """A prompt that ends where the model answers yes or no: prefix + body + suffix.

    Args:
        prefix: Before the body.
        suffix: After the body.
        instruction: Of a query that comes without one of its own.
    """

    prefix: str = DEFAULT_PREFIX
    suffix: str = DEFAULT_SUFFIX
    instruction: str = DEFAULT_INSTRUCTION

    def body(self, query: str, document: str, instruction: str | None = None) -> str:
        """Instruction, query and document, as Qwen3-Reranker was trained to read them: single line breaks."""
        return f"{self.before_query(instruction)}{query}{BEFORE_DOCUMENT}{document}"

    def before_query(self, instruction: str | None = None) -> str:
        """The body up to the query."""
        return f"<Instruct>: {self.instruction if instruction is None else instruction}\n<Query>: "


@dataclass(frozen=True)
class TokenizedPairs:
    """Prompts of one query with each of its documents.

    Args:
        ids: Token ids of the whole prompts, one a document.
        truncated_query: Whether the query was cut.
        truncated_documents: How many of the documents were cut.
    """

    ids: list[list[int]]
    truncated_query: bool
    truncated_documents: int


class PairTokenizer:
    """Tokenises the prompts of a query and its documents as the public usage of Qwen3-Reranker does.

    The prefix, the body and the suffix are encoded apart and joined. The body is encoded as one string, since byte
    pairs merge across `<Document>: `: a token belongs to the text in which it starts.

    Args:
        tokenizer: A fast tokenizer; it is copied, and its own truncation, padding and special tokens are not used.
        prompt: The prompt.
        yes: The word of a relevant document, one token.
        no: The word of any other, another token.

    Raises:
        ValueError: `yes` or `no` is not a token of its own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: RerankPrompt, *, yes: str = "yes", no: str = "no"
    ) -> None:
        self.backend = copy_backend(tokenizer)
        self.prompt = prompt
        self.pad_id = padding_id(tokenizer)
        self.yes_id, self.no_id = self._answer(yes), self._answer(no)
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
            query: A longer one keeps its end.
            documents: Longer ones keep their beginnings.
            instruction: Of the query; None for the prompt's.
            query_max_length: Tokens that may start in the query.
            document_max_length: Tokens that may start in a document.

        Raises:
            ValueError: A budget below 1.
        """
        for name, budget in (("query_max_length", query_max_length), ("document_max_length", document_max_length)):
            if budget < 1:
                raise ValueError(f"{name} is {budget}; expected at least 1 token")
        kept_query = self._end_of_query(query, query_max_length, instruction)
        head = self.prompt.body(kept_query, "", instruction)

        def kept_tokens(encoding: Encoding) -> int:
            return bisect_left(encoding.offsets, (len(head), 0)) + document_max_length

        def kept_until(encoding: Encoding) -> int | None:
            kept = kept_tokens(encoding)
            return encoding.offsets[kept - 1][1] if len(encoding.ids) >= kept else None

        encodings = encode_beginnings(
            self.backend, documents, document_max_length, kept_until, head=head, special_tokens=False
        )
        kept = [kept_tokens(encoding) for encoding in encodings]
        return TokenizedPairs(
            [self._prefix + each.ids[:end] + self._suffix for each, end in zip(encodings, kept, strict=True)],
            len(kept_query) < len(query),
            sum(len(each.ids) > end for each, end in zip(encodings, kept, strict=True)),
        )

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens of a prompt that are neither its query's nor its document's."""
        return len(self._prefix) + len(self._encode(self.prompt.body("", "", instruction)).ids) + len(self._suffix)

    def _encode(self, text: str) -> Encoding:
        return self.backend.encode(text, add_special_tokens=False)

    def _answer(self, word: str) -> int:
        encoding = self._encode(word)
        if len(encoding.ids) != 1:
            raise ValueError(
                f"the tokenizer makes {encoding.tokens} of the answer {word!r}; expected one token, choose another word"
            )
        return int(encoding.ids[0])

    def _end_of_query(self, query: str, max_length: int, instruction: str | None) -> str:
        """The end of the query in which at most `max_length` tokens start, all of it if possible."""
        read = first_characters(max_length)
        end = query[-read:]
        starts = self._token_starts(end, instruction)
        # As with documents: tokens near the cut may be of half a word.
        while read < len(query) and (len(starts) <= max_length or starts[-max_length] < read // 2):
            read *= 4
            end = query[-read:]
            starts = self._token_starts(end, instruction)
        # What is left may split into other tokens than before, and several tokens may make one character.
        while len(starts) > max_length:
            dropped = starts[-max_length - 1]
            end = end[min((start for start in starts[-max_length:] if start > dropped), default=len(end)) :]
            starts = self._token_starts(end, instruction)
        return end

    def _token_starts(self, query: str, instruction: str | None) -> list[int]:
        """Characters of the query at which its tokens start."""
        before = len(self.prompt.before_query(instruction))
        offsets = self._encode(self.prompt.body(query, "", instruction)).offsets
        return [start - before for start, _ in offsets if 0 <= start - before < len(query)]
