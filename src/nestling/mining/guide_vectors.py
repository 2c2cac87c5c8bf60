"""The embeddings of training texts by a guide (`nestling.losses.guide`): made once, kept in the cache, found by text.

They are looked up for the whole global batch on every rank, whose ids each rank has, so that nothing is gathered.

Shapes: Q queries and N documents of a global batch, G dimensions of the guide.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from nestling.batches.embed_collation import EmbedBatch
from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, require
from nestling.gpu import computing_dtype
from nestling.losses.negatives import BatchStructure
from nestling.mining.pool import open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrievers import DenseRetriever
from nestling.mining.vectors import Vectors
from nestling.models.embedder import Embedder, read_model_files
from nestling.models.model_sources import require_embedder
from nestling.models.token_model import read_config
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers


class TextVectors:
    """Embeddings of texts by the ids of the texts.

    Args:
        vectors: n embeddings.
        identities: [n] int64, the id of each text.
    """

    def __init__(self, vectors: Vectors, identities: Integers) -> None:
        self._vectors, self._order = vectors, np.argsort(identities)
        self._identities = identities[self._order]

    def take(self, identities: Tensor) -> Tensor:
        """Normalised embeddings of m texts, [m] int64 to [m, G] float32 on the CPU."""
        at = np.searchsorted(self._identities, identities.numpy())
        assert np.array_equal(self._identities[at], identities.numpy())
        return F.normalize(self._vectors.take(self._order[at]), dim=1)


@dataclass(frozen=True)
class GuideVectors:
    """The guide's embeddings of all queries and documents of a dataset."""

    queries: TextVectors
    documents: TextVectors

    @classmethod
    def encode(cls, guide: Embedder, table: RecordTable, *, show: bool) -> "GuideVectors":
        """Encode what is not cached, with the guide's own prompts and lengths; all ranks must call it."""
        query_set, pool = QuerySet.of(table), open_pool(table, None, np.zeros(0, np.int64), progress=show)
        progress = show and sys.stderr.isatty()
        dense = DenseRetriever.encode(f"guide, {table.name}", guide, query_set, pool, progress=progress)
        if show:
            print(*(f"{dense.name}: {note}" for note in dense.notes), sep="\n", flush=True)
        return cls(TextVectors(dense.queries, query_set.identities), TextVectors(dense.documents, pool.identities))

    def of_batch(self, structure: BatchStructure) -> tuple[Tensor, Tensor]:
        """[Q, G] of the queries and [N, G] of the documents of a global batch."""
        return self.queries.take(structure.query_text), self.documents.take(structure.document_text)


def require_guide(config: EmbedConfig) -> None:
    """Raise ValueError, before any weights load, for a guide that is no embedder or that transformers would shard."""
    if config.loss.guide is None:
        return
    files = read_model_files(config.loss.guide)
    guide = read_config(config.loss.guide, files.subfolder)
    require_embedder(config.loss.guide, guide, pooled=files.pooling is not None)
    require(
        not (is_deepspeed_zero3_enabled() or is_fsdp_enabled()),
        "loss.guide: with ZeRO-3, and with FSDP2 where ranks load parts, the guide would be sharded; train with DDP, "
        "ZeRO-1 or ZeRO-2, or with fsdp_cpu_ram_efficient_loading: false",
    )


def open_guide_vectors(
    config: EmbedConfig, sources: Sequence[Source], device: torch.device, *, show: bool
) -> list[GuideVectors | None]:
    """The guide's embeddings of each dataset; None for graded pairs, and for all without a guide."""
    if config.loss.guide is None:
        return [None] * len(sources)
    guide = Embedder.from_pretrained(config.loss.guide, precision=computing_dtype(config.precision)).to(device)
    return [None if source.table.graded else GuideVectors.encode(guide, source.table, show=show) for source in sources]


def with_guide(vectors: Sequence[GuideVectors | None], batch: EmbedBatch) -> EmbedBatch:
    """A batch with the guide's embeddings of its texts, if its dataset has them."""
    of_source = vectors[batch.source]
    return batch if of_source is None else replace(batch, guide=of_source.of_batch(batch.structure))
