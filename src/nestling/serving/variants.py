"""What an embedder's directory gives, and what it would give if a server read it wrongly in one of the usual ways.

Shapes: n texts, L tokens of one of them, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from nestling.batches.packing import pad
from nestling.batches.prompts import DEFAULT_INSTRUCTION, instruct
from nestling.models.embedder import Embedder, read_json
from nestling.models.encoding import evaluating
from nestling.models.pooling import POOL, Pooling
from nestling.retrieval.metrics import Floats

Tokens = Callable[[str], list[int]]

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Variant:
    """One way of reading texts.

    Args:
        end: How a text's tokens end.
        prompt: What the server puts before a text.
        pooling: How token states become an embedding.
    """

    end: str = AS_IT_IS
    prompt: str = ""
    pooling: Pooling = "last"


@dataclass(frozen=True)
class Reference:
    """A directory, read as it says, or otherwise.

    Args:
        embedder: Its model.
        max_length: Tokens of a text that it reads.
    """

    embedder: Embedder
    max_length: int

    @classmethod
    def load(cls, directory: str) -> "Reference":
        """Load it in float32, on a GPU if there is one."""
        embedder = Embedder.from_pretrained(directory).to("cuda" if torch.cuda.is_available() else "cpu")
        limit = (read_json(directory, "sentence_bert_config.json") or {}).get("max_seq_length")
        return cls(embedder, min(limit or int(embedder.tokenizer.model_max_length), embedder.max_positions))

    @property
    def right(self) -> Variant:
        return Variant(pooling=self.embedder.pooling)

    def tokens(self, text: str) -> list[int]:
        """Token ids, cut at the limit, the special ones at the end kept."""
        return self.embedder.text_tokenizer([text], self.max_length).ids[0]

    def bare_tokens(self, text: str) -> list[int]:
        """The same without special tokens."""
        backend = self.embedder.text_tokenizer.backend
        backend.no_truncation()
        return list(backend.encode(text, add_special_tokens=False).ids)[: self.max_length]

    def endings(self) -> dict[str, Tokens]:
        """Ways in which the tokens of a text may end, by name; the first is right."""
        ways: dict[str, Tokens] = {AS_IT_IS: self.tokens, "without special tokens": self.bare_tokens}
        end, other = self.embedder.text_tokenizer.end_id, self.embedder.tokenizer.eos_token_id
        if end is not None:
            name = self.embedder.tokenizer.convert_ids_to_tokens(end)
            ways[f"with {name} twice"] = lambda text: [*self.tokens(text), end]
            if isinstance(other, int) and other != end:
                name = self.embedder.tokenizer.convert_ids_to_tokens(other)
                ways[f"with {name} at the end"] = lambda text: [*self.tokens(text)[:-1], other]
        return ways

    def prompts(self) -> list[str]:
        """What a server may put before a text on its own; the first, nothing, is right."""
        own = self.embedder.prompts
        default = [instruct(DEFAULT_INSTRUCTION)] if own.default_query.startswith("Instruct: ") else []
        return list(dict.fromkeys(["", own.default_query, own.document, *default]))

    def expected_embeddings(self, texts: Sequence[str]) -> Floats:
        """[n, D] float64: embeddings as the directory's files say, normalised if they say so."""
        raw = self.embed([self.tokens(text) for text in texts])
        return normalised(raw) if self.embedder.normalize else raw

    def embed(self, ids: Sequence[list[int]]) -> Floats:
        """[n, D] float64, not normalised, of texts by their token ids."""
        return np.stack([self.pool(self.states(each), self.embedder.pooling) for each in ids])

    def variants(self, texts: Sequence[str]) -> Iterator[tuple[Variant, Floats]]:
        """Every way of reading `texts`, and [n, D] float64 that it gives, not normalised."""
        for (end, tokens), prompt in product(self.endings().items(), self.prompts()):
            states = [self.states(tokens(prompt + text)) for text in texts]
            for pooling in get_args(Pooling):
                yield Variant(end, prompt, pooling), np.stack([self.pool(each, pooling) for each in states])

    def states(self, ids: list[int]) -> Tensor:
        """States of the last layer for one text, [1, L, D]; zeros for no tokens at all."""
        embedder = self.embedder
        if not ids:
            return torch.zeros(1, 1, embedder.dim)
        with torch.no_grad(), evaluating(embedder), embedder.computing():
            return embedder.hidden_states(pad([ids], 0).to(embedder.device)).float().cpu()

    def pool(self, states: Tensor, pooling: Pooling) -> Floats:
        """[D] float64."""
        pooled: Floats = POOL[pooling](states, torch.tensor([states.shape[1]]))[0].double().numpy()
        return pooled


def normalised(vectors: Floats) -> Floats:
    """Each of [n, D] over its length; zeros stay."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled


def cosines(one: Floats, other: Floats) -> Floats:
    """[n] of [n, D] and [n, D], which need not be normalised."""
    values: Floats = (normalised(one) * normalised(other)).sum(axis=-1)
    return values
