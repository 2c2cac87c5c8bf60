"""Texts of random words, of no domain: what an embedder makes of them before training stays so during it, by
`nestling.losses.retention`. They need no data, and every tokenizer has words."""

from dataclasses import dataclass

import numpy as np

from nestling.batches.prompts import TextTokenizer
from nestling.batches.sampling import BatchIndices

TEXTS = 2048  # of a run; each batch draws as many of them as it has queries
WORDS = 4, 24  # of a text, from and to
LETTERS = 3  # of a word, at the least


@dataclass(frozen=True)
class RandomTexts:
    """The texts of a run, with a document's prompt.

    Args:
        ids: Token ids of each.
        prompt: That prompt.
        seed: Of the run.
    """

    ids: list[list[int]]
    prompt: str
    seed: int

    @classmethod
    def draw(cls, tokenizer: TextTokenizer, prompt: str, max_length: int, seed: int) -> "RandomTexts":
        """Texts of words that are tokens, each word as likely as any other.

        Args:
            tokenizer: Whose words; it also truncates.
            prompt: A document's prompt.
            max_length: Tokens of a text, its prompt included.
            seed: Of the run.

        Raises:
            ValueError: No token is a word.
        """
        found, random = words(tokenizer), np.random.default_rng(seed)
        if not found:
            raise ValueError(
                f"loss.retention_weight: no token of the model is a word of {LETTERS} letters, of which random texts "
                "are made; set it to 0"
            )
        counts = random.integers(WORDS[0], WORDS[1] + 1, TEXTS)
        drawn = [random.integers(len(found), size=count) for count in counts]
        texts = [prompt + " ".join(found[word] for word in each) for each in drawn]
        return cls(tokenizer(texts, max_length).ids, prompt, seed)

    def rows(self, indices: BatchIndices) -> list[int]:
        """Which texts a global batch has, as many as queries: a function of the batch, so that resuming needs no more.

        Every rank takes its part of them, in the order of its queries.
        """
        random = np.random.default_rng([self.seed, indices.source, *indices.rows, *indices.row_epochs])
        drawn: list[int] = random.integers(len(self.ids), size=len(indices.rows)).tolist()
        return drawn


def words(tokenizer: TextTokenizer) -> list[str]:
    """The tokens that are words, in the order of their ids: letters alone, whatever marks where a word begins."""
    backend = tokenizer.backend
    tokens = [backend.decode([token]).strip() for token in range(backend.get_vocab_size())]
    return [token for token in dict.fromkeys(tokens) if len(token) >= LETTERS and token.isalpha()]
