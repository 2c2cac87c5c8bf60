"""Pairs of a query and a document for an encoder, by the template of its tokenizer, within length limits."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nestling.batches.pair_prompts import TokenizedPairs, keep_end, require_lengths
from nestling.batches.prompts import copy_backend, encode_truncated, padding_id


class EncoderPairs:
    """Tokenises a query with each of its documents as the tokenizer itself does, as `[CLS] q [SEP] d [SEP]` say.

    Where the model reads token types, an id stands for a token and its type: token + `type_stride` * type. So ids go
    through batches like those of any other model, and `split_types` takes them apart before the model reads them.

    Args:
        tokenizer: A fast tokenizer; it is copied, and its own truncation and padding are not used.
        instruction: Instruction of a query that has none, written before the query; empty for a model that reads
            no instructions, those of queries neither.
        max_length: Tokens of a pair that the model can read, special tokens included.
        type_stride: Rows of the model's token embeddings; 0 for a model that reads no token types.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, instruction: str, max_length: int, type_stride: int = 0
    ) -> None:
        self.backend = copy_backend(tokenizer)
        self.instruction = instruction
        self.max_length = max_length
        self.type_stride = type_stride
        self.pad_id = padding_id(tokenizer)
        self._special = self.backend.num_special_tokens_to_add(is_pair=True)

    def __call__(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        query_max_length: int,
        document_max_length: int,
    ) -> TokenizedPairs:
        """Pairs of `query` with each of `documents`.

        Args:
            query: The query; truncation keeps its end.
            documents: The documents; truncation keeps their beginnings, so many tokens that a pair has `max_length`.
            instruction: The query's instruction; None for the default one.
            query_max_length: Tokens that may start in the query.
            document_max_length: Tokens of a document.

        Raises:
            ValueError: A maximum length below 1, or an instruction that leaves no room for texts.
        """
        require_lengths(query_max_length, document_max_length)
        before = self.before_query(instruction)
        room = self.max_length - self.overhead(instruction) - 1
        if room < 1:
            raise ValueError(f"the instruction {before!r} leaves no room for texts in the {self.max_length} tokens")
        kept = keep_end(query, min(query_max_length, room), partial(self._token_starts, before))
        first = self._encode(before + kept)
        length = min(document_max_length, self.max_length - self._special - len(first.ids))

        def end_of_kept(encoding: Encoding) -> int | None:
            return encoding.offsets[length - 1][1] if len(encoding.ids) >= length else None

        seconds = encode_truncated(self.backend, documents, length, end_of_kept, special_tokens=False)
        truncated = sum(len(each.ids) > length for each in seconds)
        for each in seconds:
            each.truncate(length)
        return TokenizedPairs([self._join(first, each) for each in seconds], len(kept) < len(query), truncated)

    def before_query(self, instruction: str | None = None) -> str:
        """What is written before a query."""
        return before_query(instruction if instruction is not None and self.instruction else self.instruction)

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens of a pair beside those of its query and its document."""
        return self._special + len(self._encode(self.before_query(instruction)).ids)

    def _encode(self, text: str) -> Encoding:
        return self.backend.encode(text, add_special_tokens=False)

    def _token_starts(self, before: str, query: str) -> list[int]:
        """For each token that starts in the query, the character of the query at which it starts."""
        offsets = self._encode(before + query).offsets
        return [start - len(before) for start, _ in offsets[bisect_left(offsets, (len(before), 0)) :]]

    def _join(self, first: Encoding, second: Encoding) -> list[int]:
        joined = self.backend.post_process(first, second)
        if not self.type_stride:
            return joined.ids
        return [token + self.type_stride * kind for token, kind in zip(joined.ids, joined.type_ids, strict=True)]


def before_query(instruction: str) -> str:
    """What an instruction puts before a query."""
    return f"{instruction} " if instruction else ""


def split_types(ids: Tensor, type_stride: int) -> tuple[Tensor, Tensor]:
    """Token ids and token types of the ids of `EncoderPairs`, int64 of the same shape each."""
    return ids % type_stride, ids // type_stride
