"""The reranking model: it scores how relevant documents are to a query, reading both together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from nestling.batches.packing import AnyChunk
from nestling.batches.pair_prompts import Pairs
from nestling.models.reranker_settings import AnySettings
from nestling.models.scoring import Group, ScoringStats, score_groups
from nestling.models.token_model import TokenModel, is_decoder, read_config


@dataclass(frozen=True)
class RankedDocument:
    """A ranked document.

    Args:
        index: Its index among the documents that were ranked.
        score: Its score, as `Reranker.score` gives it.
    """

    index: int
    score: float


class Reranker(TokenModel):
    """A reranking model, of one of two kinds: a causal language model, or an encoder.

    Attributes:
        settings: What it reads, within which lengths.
        pairs: Makes token ids of a query with its documents.
        share_prefix: Whether the tokens that the prompts of a query begin with run once for all its documents.
        full_vocabulary: Whether `forward` returns log-probabilities over the full vocabulary instead of logits.
    """

    settings: AnySettings
    pairs: Pairs
    share_prefix: bool
    full_vocabulary: bool

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        precision: torch.dtype = torch.float32,
        attn_implementation: str = "auto",
        dropout: float | None = 0.0,
        settings: AnySettings | None = None,
        share_prefix: bool = True,
        new_head: int | None = None,
        cpu: bool = False,
        quantisation: BitsAndBytesConfig | None = None,
    ) -> "Reranker":
        """Load a causal language model or an encoder as a reranker.

        Args:
            model: Directory or hub id.
            dtype: Dtype of the weights in memory: float32 for training all of them, "auto" for the published dtype.
            precision: Dtype of the computation, float32 or bfloat16.
            attn_implementation: "auto" or "varlen" for packed prompts where the model can read them; or a name that
                transformers knows.
            dropout: Dropout probability in the model; None keeps the model's own.
            settings: What it reads, within which lengths; by default as its files say.
            share_prefix: Whether a causal model runs the tokens that the prompts of a query begin with once.
            new_head: Seed of the head that an encoder without one gets, to be trained; by default it is refused.
            cpu: Whether the model will stay on the CPU even if there is a GPU.
            quantisation: How transformers quantises the weights; not at all by default.

        Raises:
            ValueError: The model is no reranker, and none can be made of it.
        """
        # Imported here, since both kinds are made from this class.
        from nestling.models.causal_reranker import CausalReranker
        from nestling.models.encoder_reranker import EncoderReranker

        kind: Any = CausalReranker if is_decoder(read_config(model)) else EncoderReranker
        loaded: Reranker = kind.from_pretrained(
            model,
            dtype=dtype,
            precision=precision,
            attn_implementation=attn_implementation,
            dropout=dropout,
            settings=settings,
            share_prefix=share_prefix,
            new_head=new_head,
            cpu=cpu,
            quantisation=quantisation,
        )
        return loaded

    @property
    def width(self) -> int:
        return 1

    @property
    def max_length(self) -> int:
        """Tokens of a query with a document, and of what is around them, that it reads at most."""
        return self.max_positions

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """The logit of each prompt, [n, 1] float32 (float64 for float64 weights).

        Args:
            chunk: The prompts.
            in_place: Whether the backward pass adds the gradient of the token embeddings in place, as
                `nestling.models.token_lookup` does.
        """
        raise NotImplementedError

    def described(self) -> dict[str, object]:
        """What it reads and answers, by what a summary calls it."""
        raise NotImplementedError

    def scores_of(self, logits: Tensor) -> Tensor:
        """What the model is said to score, of its logits: their sigmoid, a probability."""
        return logits.sigmoid()

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        tokens_per_batch: int | None = None,
        progress: str | None = None,
    ) -> Tensor:
        """Score of each (query, document) pair, [n] float32: its probability, unless the model has no sigmoid.

        Pairs with equal queries run together.
        """
        by_query: dict[str, list[int]] = {}
        for i, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(i)
        groups = [Group(query, [pairs[i][1] for i in rows], instruction) for query, rows in by_query.items()]
        result = torch.empty(len(pairs))
        logits = self.logits(groups, tokens_per_batch=tokens_per_batch, progress=progress)
        for rows, values in zip(by_query.values(), logits, strict=True):
            result[rows] = self.scores_of(values).float()
        return result

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, instruction: str | None = None
    ) -> list[RankedDocument]:
        """The `top_k` documents with the highest scores, best first; all by default. Ties keep their order."""
        scores = self.score([(query, document) for document in documents], instruction=instruction)
        order = scores.argsort(descending=True, stable=True)[:top_k]
        return [RankedDocument(int(i), float(scores[i])) for i in order]

    def logits(
        self,
        groups: Sequence[Group],
        *,
        tokens_per_batch: int | None = None,
        progress: str | None = None,
        stats: ScoringStats | None = None,
    ) -> list[Tensor]:
        """The logits of the documents of each group, [documents] float32 each; arguments as in `score_groups`."""
        return list(score_groups(self, groups, tokens_per_batch=tokens_per_batch, progress=progress, stats=stats))
