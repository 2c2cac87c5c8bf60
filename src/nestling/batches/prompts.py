"""Prompts of an embedder, and a tokenizer wrapper whose truncation keeps the end-of-text token."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from nestling.config.prompts import INSTRUCTION

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# The end token of Qwen3's embedders.
END_OF_TEXT = "<|endoftext|>"

# Characters that are tokenised at first for each wanted token: a 10 MB text costs no more than a long one.
CHARACTERS_PER_TOKEN = 32
# But at least these: half of them exceed the 100 characters up to which WordPiece splits a word.
MIN_CHARACTERS = 512


# The query prompt of Qwen3's embedders: no space after `Query:`.
FORM = f"Instruct: {INSTRUCTION}\nQuery:"


def instruct(instruction: str) -> str:
    """Query prompt of Qwen3's embedders with an instruction."""
    return FORM.replace(INSTRUCTION, instruction)


@dataclass(frozen=True)
class Prompts:
    """Prompts that are put before queries and documents.

    Args:
        default_query: Prompt of a query that has no instruction.
        document: Prompt of every document.
        form: Prompt of a query that has an instruction, in which `{instruction}` stands for it.
    """

    default_query: str = ""
    document: str = ""
    form: str = FORM

    def query(self, instruction: str | None = None) -> str:
        """Prompt of a query, made from its instruction if it has one."""
        return self.default_query if instruction is None else self.form.replace(INSTRUCTION, instruction)

    @property
    def instructed(self) -> bool:
        """Whether the prompt of a query without an instruction has a default one in the same form."""
        before, place, after = self.form.partition(INSTRUCTION)
        return bool(place) and self.default_query.startswith(before) and self.default_query.endswith(after)


@dataclass(frozen=True)
class Tokenized:
    """Token ids of some texts, special tokens included, and how many of the texts were truncated."""

    ids: list[list[int]]
    truncated: int


class TextTokenizer:
    """Tokenises texts with their prompts; truncation keeps the special tokens at the end.

    Args:
        tokenizer: A fast tokenizer; it is copied, and its own truncation and padding are not used.
        require_end: Every text must end in a special token, the one that last-token pooling reads.
        append_end: If the tokenizer does not append one (base models), have its copy do so. False takes it as it is:
            the last token of a text is then one of its words.
        pool_prompt: Whether pooling reads the tokens of a text's prompt.

    Attributes:
        appended_end: The end token that the post-processor had to be added for; None otherwise.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        require_end: bool,
        append_end: bool = True,
        pool_prompt: bool = True,
    ) -> None:
        self.backend = copy_backend(tokenizer)
        self.pool_prompt = pool_prompt
        self._special = set(tokenizer.all_special_ids)
        self.pad_id = padding_id(tokenizer)
        self.end_id: int | None = None
        self.appended_end: str | None = None
        special = {token for token, each in tokenizer.added_tokens_decoder.items() if each.special}
        ends = self.backend.encode("a").ids[-1] in special
        if require_end and append_end and not ends:
            self.appended_end = self._append_end(tokenizer)
        if require_end and (append_end or ends):
            self.end_id = self.backend.encode("a").ids[-1]

    def __call__(self, texts: Sequence[str], max_length: int) -> Tokenized:
        """Token ids of `texts`, which include their prompts, each truncated to `max_length` tokens.

        Raises:
            ValueError: `max_length` leaves no room for text, or a text does not end in the end token.
        """
        if max_length <= self.special_tokens:
            raise ValueError(
                f"a maximum length of {max_length} tokens leaves no room for text: "
                f"{self.special_tokens} special tokens are added to each; raise it"
            )
        self.backend.enable_truncation(max_length)

        def end_of_kept(encoding: Encoding) -> int | None:
            return end_of_last_token(encoding) if len(encoding.ids) == max_length else None

        encodings = encode_truncated(self.backend, texts, max_length, end_of_kept)
        ids = [encoding.ids for encoding in encodings]
        self._check_end(ids, texts)
        limit = characters_to_read(max_length)
        truncated = sum(
            bool(encoding.overflowing) or len(text) > limit for encoding, text in zip(encodings, texts, strict=True)
        )
        return Tokenized(ids, truncated)

    def overhead(self, prompt: str) -> int:
        """Tokens that are added to a text: those of the prompt and the special tokens."""
        self.backend.no_truncation()
        return len(self.backend.encode(prompt).ids)

    def pooled_from(self, prompts: Sequence[str]) -> list[int] | None:
        """The first token of each text that pooling reads, given the texts' prompts; None if it reads the prompts.

        As in sentence-transformers, it is the number of tokens of the prompt alone, without a special one at its end;
        an empty prompt has none, so that pooling reads also a special token at the beginning.
        """
        if self.pool_prompt:
            return None
        self.backend.no_truncation()
        lengths = {"": 0}
        for prompt in set(prompts) - {""}:
            ids = self.backend.encode(prompt).ids
            lengths[prompt] = len(ids) - (ids[-1] in self._special)
        return [lengths[prompt] for prompt in prompts]

    @property
    def special_tokens(self) -> int:
        """Special tokens that are added to each text."""
        return self.backend.num_special_tokens_to_add(is_pair=False)

    def _append_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Make the backend append an end token, and return it."""
        # Qwen3's chat models name <|im_end|> their eos_token, while their embedders end texts in <|endoftext|>.
        end = END_OF_TEXT if self.backend.token_to_id(END_OF_TEXT) is not None else tokenizer.eos_token
        if end is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, which last-token pooling needs; give it an eos_token"
            )
        self.backend = with_end(self.backend, str(end))
        return str(end)

    def _check_end(self, ids: list[list[int]], texts: Sequence[str]) -> None:
        if self.end_id is None:
            return
        for each, text in zip(ids, texts, strict=True):
            if not each or each[-1] != self.end_id:
                raise ValueError(
                    f"the tokens of {text[:60]!r} end in {each[-1:]}, not in the end token {self.end_id}; "
                    "the tokenizer must append it to every text"
                )


def with_end(backend: Tokenizer, end: str) -> Tokenizer:
    """A copy of a backend that appends the token `end` to every text, behind what it adds already (BOS, say).

    The token goes into the template that is there: of two templates in a row, the second takes the pieces of the first
    for a pair of texts.
    """
    content = json.loads(backend.to_str())
    own = content["post_processor"]
    steps = [] if own is None else own["processors"] if own["type"] == "Sequence" else [own]
    template = next((each for each in steps if each["type"] == "TemplateProcessing"), None)
    if template is None:
        copy = Tokenizer.from_str(json.dumps(content))
        append = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, copy.token_to_id(end))])
        copy.post_processor = append if own is None else ProcessorSequence([copy.post_processor, append])
        return copy
    for form in ("single", "pair"):
        template[form] = [piece for each in template[form] for piece in with_end_behind(each, end)]
    template["special_tokens"][end] = {"id": end, "ids": [backend.token_to_id(end)], "tokens": [end]}
    return Tokenizer.from_str(json.dumps(content))


def with_end_behind(piece: dict[str, Any], end: str) -> list[dict[str, Any]]:
    """A piece of a template and, behind a text, the end token of the same segment."""
    if "Sequence" not in piece:
        return [piece]
    return [piece, {"SpecialToken": {"id": end, "type_id": piece["Sequence"]["type_id"]}}]


def copy_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the fast tokenizer's backend that neither pads nor truncates."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the padding token; 0 for a tokenizer without one, since nothing reads padded positions."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def characters_to_read(max_length: int) -> int:
    """How many characters of a text to tokenise at first, to get `max_length` tokens."""
    return max(CHARACTERS_PER_TOKEN * max_length, MIN_CHARACTERS)


def encode_truncated(
    backend: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    end_of_kept: Callable[[Encoding], int | None],
    *,
    prefix: str = "",
    special_tokens: bool = True,
) -> list[Encoding]:
    """Encode prefix + text, tokenising no more of a long text than truncation needs.

    Args:
        backend: The tokenizer; the caller sets its truncation.
        texts: The texts.
        max_length: Tokens of a text that the caller keeps.
        end_of_kept: Given an encoding, the character of prefix + text at which the last kept token ends; None if the
            encoding has fewer tokens than are kept.
        prefix: Put before every text.
        special_tokens: Whether the tokenizer adds its special tokens.
    """
    first = characters_to_read(max_length)
    encodings = backend.encode_batch([prefix + text[:first] for text in texts], add_special_tokens=special_tokens)
    for i, text in enumerate(texts):
        read = first
        # The text may have been cut inside a word, whose tokens would differ: the kept tokens must end well before.
        while read < len(text) and ((end := end_of_kept(encodings[i])) is None or end - len(prefix) > read // 2):
            read *= 4
            encodings[i] = backend.encode(prefix + text[:read], add_special_tokens=special_tokens)
    return encodings


def end_of_last_token(encoding: Encoding) -> int:
    """The character of its text at which the last token of an encoding ends."""
    return max(end for _, end in encoding.offsets)
