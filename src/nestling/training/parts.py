"""Everything that a recipe builds before its loop."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from nestling.backends.backend import Backend
from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.packing import TokenBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.batches.sampling import BatchSampler
from nestling.config import EmbedConfig, RerankConfig
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.records.retrieval_set import RetrievalSet
from nestling.training.cached import ActivationBudget
from nestling.training.dev_sets import RerankDevSet


@dataclass(frozen=True)
class EmbedParts:
    """What train/embed.py builds before its loop.

    Args:
        config: The settings.
        accelerator: This rank, its device and the others.
        dims: The dimensions to train, largest first, and their weights.
        batch_sampler: Which rows make up a batch.
        dev_sets: What the model is evaluated on.
        embedder: The model.
        collator: Makes tensors of a batch.
        backend: The model in training, and how its ranks synchronise.
        budget: Memory for activations between the two passes.
    """

    config: EmbedConfig
    accelerator: Accelerator
    dims: dict[int, float]
    batch_sampler: BatchSampler
    dev_sets: list[RetrievalSet]
    embedder: Embedder
    collator: EmbedCollator
    backend: Backend
    budget: ActivationBudget

    @torch.no_grad()
    def embed(self, tokens: TokenBatch) -> Tensor:
        """[n, D] float32 embeddings of n texts by the model as it is, on the device; all ranks must call it."""
        self.embedder.eval()
        tokens = tokens.to(self.accelerator.device)
        with self.backend.computing():
            return torch.cat([self.embedder(chunk).float() for chunk in tokens.chunks])[tokens.position]


@dataclass(frozen=True)
class RerankParts:
    """What train/rerank.py builds before its loop.

    Args:
        config: The settings.
        accelerator: This rank, its device and the others.
        batch_sampler: Which rows make up a batch.
        dev_sets: What the model is evaluated on.
        reranker: The model.
        collator: Makes tensors of a batch.
        backend: The model in training, and how its ranks synchronise.
        position_bytes: Bytes of activations for each position of a chunk.
    """

    config: RerankConfig
    accelerator: Accelerator
    batch_sampler: BatchSampler
    dev_sets: list[RerankDevSet]
    reranker: Reranker
    collator: RerankCollator
    backend: Backend
    position_bytes: float
