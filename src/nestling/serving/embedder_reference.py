"""Embeddings of a model directory, encoded correctly and with the usual errors of servers.

Shapes: n texts, L tokens of one of them, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from nestling.batches.packing import pad
from nestling.batches.prompts import DEFAULT_INSTRUCTION, instruct
from nestling.gpu import best_device
from nestling.models.embedder import Embedder, pooled_width
from nestling.models.encoding import evaluating
from nestling.models.json_files import read_object
from nestling.models.pooling import Pooling, modes_of, pool_padded
from nestling.retrieval.metrics import Floats

Tokenisation = Callable[[str], list[int]]

CORRECT_END = "with the correct end"
SERVED_POOLINGS: tuple[Pooling, ...] = ("last", "mean", "cls")


@dataclass(frozen=True)
class EncodingVariant:
    """One way of encoding texts.

    Args:
        end: How the token ids of a text end.
        prompt: Prompt that the server puts before a text.
        pooling: Pooling of the token states.
        stripped: Whether white space at the ends of a text is removed.
        head: Whether the modules behind the pooling are computed.
    """

    end: str = CORRECT_END
    prompt: str = ""
    pooling: Pooling = "last"
    stripped: bool = False
    head: bool = True


@dataclass(frozen=True)
class EmbedderReference:
    """A directory, whose embedder encodes texts correctly or with usual errors.

    Args:
        embedder: The embedder.
        max_length: Maximum number of tokens of a text.
    """

    embedder: Embedder
    max_length: int

    @classmethod
    def load(cls, directory: str) -> "EmbedderReference":
        """Load a directory in float32, on a GPU if there is one.

        Raises:
            ValueError: It is no embedder, or one that no server can compute.
        """
        embedder = Embedder.from_pretrained(directory).to(best_device())
        if not embedder.text_tokenizer.pool_prompt:
            raise ValueError(
                f"{directory}: its pooling leaves out the prompt (include_prompt: false), and no request to a server "
                "says where that ends; use sentence-transformers, whose embeddings the export is checked against"
            )
        return cls(embedder, embedder.max_seq_length)

    @property
    def trained_dims(self) -> list[int]:
        """Matryoshka dimensions that its config.json names, in which some servers answer and in no others."""
        return list(read_object(self.embedder.source, "config.json").get("matryoshka_dimensions") or [])

    @property
    def correct(self) -> EncodingVariant:
        """The correct way of encoding texts."""
        return EncodingVariant(pooling=self.embedder.pooling)

    def tokens(self, text: str) -> list[int]:
        """Token ids, truncated at the limit; special tokens at the end are kept."""
        return self.embedder.text_tokenizer([text], self.max_length).ids[0]

    def tokens_without_special(self, text: str) -> list[int]:
        """Token ids without special tokens, truncated at the limit."""
        backend = self.embedder.text_tokenizer.backend
        backend.no_truncation()
        return list(backend.encode(text, add_special_tokens=False).ids)[: self.max_length]

    def endings(self) -> dict[str, Tokenisation]:
        """Name -> tokenisation for the ways in which the token ids of a text may end; the first one is correct."""
        ways: dict[str, Tokenisation] = {
            CORRECT_END: self.tokens,
            "without special tokens": self.tokens_without_special,
        }
        end, other = self.embedder.text_tokenizer.end_id, self.embedder.tokenizer.eos_token_id
        if end is not None:
            name = self.embedder.tokenizer.convert_ids_to_tokens(end)
            ways[f"with {name} twice"] = lambda text: [*self.tokens(text), end]
            if isinstance(other, int) and other != end:
                name = self.embedder.tokenizer.convert_ids_to_tokens(other)
                ways[f"with {name} at the end"] = lambda text: [*self.tokens(text)[:-1], other]
        return ways

    def prompts(self) -> list[str]:
        """Prompts that a server may put before a text by itself; the first one, an empty prompt, is correct."""
        prompts = self.embedder.prompts
        default = [instruct(DEFAULT_INSTRUCTION)] if prompts.default_query.startswith("Instruct: ") else []
        return list(dict.fromkeys(["", prompts.default_query, prompts.document, *default]))

    def expected_embeddings(self, texts: Sequence[str]) -> Floats:
        """[n, D] float64: correct embeddings, normalised if the directory normalises."""
        raw = self.embed([self.tokens(text) for text in texts])
        return normalise(raw) if self.embedder.normalize else raw

    def embed(self, ids: Sequence[list[int]]) -> Floats:
        """[n, D] float64: embeddings of token ids, not normalised."""
        return np.stack([self.pool(self.states(each), self.correct) for each in ids])

    def variants(self, texts: Sequence[str]) -> Iterator[tuple[EncodingVariant, Floats]]:
        """Yield every way of encoding `texts` with its embeddings [n, D] float64, not normalised."""
        for (end, tokens), prompt in product(self.endings().items(), self.prompts()):
            read = {False: [prompt + text for text in texts], True: [(prompt + text).strip() for text in texts]}
            states = {text: self.states(tokens(text)) for text in dict.fromkeys(read[False] + read[True])}
            for (pooling, head), (stripped, each_read) in product(self.outputs(), read.items()):
                variant = EncodingVariant(end, prompt, pooling, stripped, head)
                yield variant, np.stack([self.pool(states[text], variant) for text in each_read])

    def outputs(self) -> Iterator[tuple[Pooling, bool]]:
        """The poolings that servers have in place of one, each with the head and, where it is as wide, without."""
        embedder = self.embedder
        poolings = [embedder.pooling]
        if len(modes_of(embedder.pooling)) == 1:
            poolings += [each for each in SERVED_POOLINGS if each != embedder.pooling]
        for pooling in poolings:
            yield pooling, True
            if len(embedder.head) and pooled_width(embedder.config, pooling) >= embedder.dim:
                yield pooling, False

    def states(self, ids: list[int]) -> Tensor:
        """[1, L, D]: last hidden states of one text; zeros if there are no token ids."""
        embedder = self.embedder
        if not ids:
            return torch.zeros(1, 1, embedder.config.hidden_size)
        with torch.no_grad(), evaluating(embedder), embedder.computing():
            return embedder.hidden_states(pad([ids], 0).to(embedder.device)).float().cpu()

    def pool(self, states: Tensor, variant: EncodingVariant) -> Floats:
        """[D] float64: the embedding of states [1, L, D]."""
        pooled = pool_padded(states, torch.tensor([states.shape[1]]), variant.pooling)
        embeddings: Floats = (self.through_head(pooled) if variant.head else pooled)[0].double().numpy()
        return embeddings

    def through_head(self, pooled: Tensor) -> Tensor:
        """[B, E] float32 on the CPU: pooled states [B, D] behind the modules of the head."""
        with torch.no_grad(), evaluating(self.embedder):
            output: Tensor = self.embedder.head(pooled.to(self.embedder.device))
            return output.cpu()


def normalise(vectors: Floats) -> Floats:
    """[n, D] vectors divided by their norm; zero vectors stay zero."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled


def cosine_similarities(one: Floats, other: Floats) -> Floats:
    """[n]: cosine similarities of the rows of [n, D] and [n, D], which need not be normalised."""
    values: Floats = (normalise(one) * normalise(other)).sum(axis=-1)
    return values
