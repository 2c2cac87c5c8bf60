"""What a model reads: prompts, byte for byte, and token budgets that never cut the end token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer
from tokenizers.processors import PostProcessor, TemplateProcessing
from tokenizers.processors import Sequence as ProcessorSequence
from transformers import PreTrainedTokenizerBase

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

# Texts are read only so many characters a token at first: a 10 MB text costs no more than a long one.
CHARACTERS_PER_TOKEN = 32
# No fewer than these: half of them are more than the 100 that WordPiece reads of a word.
LEAST_CHARACTERS = 512


def instruct(instruction: str) -> str:
    """Query prefix of the instruction-aware models (Qwen3 Embedding, E5-Mistral): no space after `Query:`."""
    return f"Instruct: {instruction}\nQuery:"


@dataclass(frozen=True)
class Prompts:
    """Prefixes of queries and documents.

    Args:
        default_query: Prefix of a query that comes without an instruction of its own.
        document: Prefix of every document.
    """

    default_query: str = ""
    document: str = ""

    def query(self, instruction: str | None = None) -> str:
        """Prefix of a query, from its instruction if it has one."""
        return self.default_query if instruction is None else instruct(instruction)


@dataclass(frozen=True)
class Tokenized:
    """Token ids of some texts, special tokens included, and how many of the texts were cut."""

    ids: list[list[int]]
    truncated: int


class TextTokenizer:
    """Tokenises prompt + text within a budget; the special tokens at the end survive the cut.

    Args:
        tokenizer: A fast tokenizer; it is copied, and its own truncation and padding are not used.
        require_end: Every text must end in a special token, which last-token pooling reads. A tokenizer that does not
            append one (base models) is given a post-processor that does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, require_end: bool) -> None:
        self.backend = copy_backend(tokenizer)
        self.pad_id = padding_id(tokenizer)
        self.end_id: int | None = None
        self.appended_end: str | None = None  # the token that the tokenizer had to be taught to append
        if require_end:
            self.appended_end = self._ensure_end(tokenizer)
            self.end_id = self.backend.encode("a").ids[-1]

    def __call__(self, texts: Sequence[str], max_length: int) -> Tokenized:
        """Token ids of `texts` (prompts included), each at most `max_length` long; ValueError if the end is lost."""
        if max_length <= self.special_tokens:
            raise ValueError(
                f"{max_length} tokens leave no room beside the {self.special_tokens} special ones of a text"
            )
        self.backend.enable_truncation(max_length)

        def kept_until(encoding: Encoding) -> int | None:
            return last_character(encoding) if len(encoding.ids) == max_length else None

        encodings = encode_beginnings(self.backend, texts, max_length, kept_until)
        ids = [encoding.ids for encoding in encodings]
        self._check_end(ids, texts)
        limit = first_characters(max_length)
        cut = sum(
            bool(encoding.overflowing) or len(text) > limit for encoding, text in zip(encodings, texts, strict=True)
        )
        return Tokenized(ids, cut)

    def overhead(self, prompt: str) -> int:
        """Tokens of a text that are not its own: the prompt's and the special ones."""
        self.backend.no_truncation()
        return len(self.backend.encode(prompt).ids)

    @property
    def special_tokens(self) -> int:
        """Special tokens that are added to each text."""
        return self.backend.num_special_tokens_to_add(is_pair=False)

    def _ensure_end(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        special = {token for token, each in tokenizer.added_tokens_decoder.items() if each.special}
        if self.backend.encode("a").ids[-1] in special:
            return None
        # Qwen3's chat models name <|im_end|> their eos_token, while their embedders end texts in <|endoftext|>.
        end = "<|endoftext|>" if self.backend.token_to_id("<|endoftext|>") is not None else tokenizer.eos_token
        if end is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, which last-token pooling needs; give it an eos_token"
            )
        append = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, self.backend.token_to_id(end))])
        existing: PostProcessor | None = self.backend.post_processor
        self.backend.post_processor = append if existing is None else ProcessorSequence([existing, append])
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


def copy_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the fast tokenizer's backend that neither pads nor truncates."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token; 0 for a tokenizer without one, since what stands at the padding is never read."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def first_characters(max_length: int) -> int:
    """How many characters of a text are read at first for `max_length` tokens."""
    return max(CHARACTERS_PER_TOKEN * max_length, LEAST_CHARACTERS)


def encode_beginnings(
    backend: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    kept_until: Callable[[Encoding], int | None],
    *,
    head: str = "",
    special_tokens: bool = True,
) -> list[Encoding]:
    """Encodings of head + text, each text read only as far as its kept tokens need.

    Args:
        backend: Encodes; its truncation is the caller's.
        texts: The texts.
        max_length: Tokens that are kept of a text.
        kept_until: The character of head + text where the last kept token ends; None while there are fewer than wanted.
        head: Stands before every text.
        special_tokens: Whether the tokenizer adds its special tokens.
    """
    first = first_characters(max_length)
    encodings = backend.encode_batch([head + text[:first] for text in texts], add_special_tokens=special_tokens)
    for i, text in enumerate(texts):
        read = first
        # Tokens near the cut may be of half a word.
        while read < len(text) and ((end := kept_until(encodings[i])) is None or end - len(head) > read // 2):
            read *= 4
            encodings[i] = backend.encode(head + text[:read], add_special_tokens=special_tokens)
    return encodings


def last_character(encoding: Encoding) -> int:
    """Where in its text the last token ends that was kept."""
    return max(end for _, end in encoding.offsets)
