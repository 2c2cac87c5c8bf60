"""Where the tokens of a text stand in it."""

from typing import Protocol

import regex
import xxhash

from nestling.data_checks.normalise import UNSPACED

# What joins title and text, and a first word without the space that its token has elsewhere.
JOINT = 2
Spans = list[tuple[int, int]]  # of each token, its first character and the one behind its last


class Tokens(Protocol):
    """What counts the tokens of a text."""

    @property
    def special(self) -> int:
        """Tokens that a model gets beside those of title and text."""

    @property
    def digest(self) -> str:
        """Another one where texts have other tokens."""

    def spans(self, texts: list[str]) -> list[Spans]:
        """The tokens of each text."""


class Words:
    """Words between white space; in scripts that have none, characters."""

    special, digest = 0, "words"
    _words = regex.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")

    def spans(self, texts: list[str]) -> list[Spans]:
        return [[found.span() for found in self._words.finditer(text)] for text in texts]


class ModelTokens:
    """The tokens of a model.

    Args:
        model: Directory or hub id.
    """

    def __init__(self, model: str) -> None:
        from nestling.models.model_tokenizer import load_tokenizer  # imports torch, which words do without

        tokenizer = load_tokenizer(model)
        self.special = tokenizer.num_special_tokens_to_add() + JOINT
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest = xxhash.xxh3_64_hexdigest(self._tokenizer.to_str().encode())

    def spans(self, texts: list[str]) -> list[Spans]:
        return [each.offsets for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
