"""The embeddings of training texts by frozen models, a guide (`nestling.losses.guide`) or a teacher: made once, kept in
the cache, found by text; or those that a folder has (`nestling.mining.stored_vectors`).

They are looked up for the whole global batch on every rank, whose ids each rank has, so that nothing is gathered.

Shapes: Q queries and N documents of a global batch, G dimensions of the frozen model.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from nestling.mining.frozen_models import Digests, digests_of, record_models, require_same_model
from nestling.mining.pool import open_pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrievers import DenseRetriever
from nestling.mining.stored_vectors import StoredVectors, is_stored, text_identities
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
        identities: [m] int64, the id of each text.
        rows: [m] int64, which of the embeddings is the text's; by default its own position.
    """

    def __init__(self, vectors: Vectors, identities: Integers, rows: Integers | None = None) -> None:
        order = np.argsort(identities, kind="stable")
        self._vectors, self._order = vectors, order if rows is None else rows[order]
        self._identities = identities[order]

    def take(self, identities: Tensor) -> Tensor:
        """Normalised embeddings of m texts, [m] int64 to [m, G] float32 on the CPU."""
        at = np.searchsorted(self._identities, identities.numpy())
        assert np.array_equal(self._identities[at], identities.numpy())
        return F.normalize(self._vectors.take(self._order[at]), dim=1)


@dataclass(frozen=True)
class DatasetVectors:
    """A frozen model's embeddings of all queries and documents of a dataset."""

    queries: TextVectors
    documents: TextVectors

    @classmethod
    def encode(cls, name: str, model: Embedder, table: RecordTable, *, show: bool) -> "DatasetVectors":
        """Encode what is not cached, with the model's own prompts and lengths; all ranks must call it."""
        query_set, pool = QuerySet.of(table), open_pool(table, None, np.zeros(0, np.int64), progress=show)
        progress = show and sys.stderr.isatty()
        dense = DenseRetriever.encode(f"{name}, {table.name}", model, query_set, pool, progress=progress)
        if show:
            print(*(f"{dense.name}: {note}" for note in dense.notes), sep="\n", flush=True)
        return cls(TextVectors(dense.queries, query_set.identities), TextVectors(dense.documents, pool.identities))

    @classmethod
    def stored(cls, vectors: StoredVectors, table: RecordTable) -> "DatasetVectors":
        """The vectors of a folder that has all texts of the dataset."""
        query_set = QuerySet.of(table)
        order = np.argsort(vectors.identities, kind="stable")
        rows = order[np.searchsorted(vectors.identities, text_identities(query_set), sorter=order)]
        return cls(
            TextVectors(vectors.vectors, query_set.identities, rows), TextVectors(vectors.vectors, vectors.identities)
        )

    def of_batch(self, structure: BatchStructure) -> tuple[Tensor, Tensor]:
        """[Q, G] of the queries and [N, G] of the documents of a global batch."""
        return self.queries.take(structure.query_text), self.documents.take(structure.document_text)


@dataclass(frozen=True)
class FrozenVectors:
    """Embeddings of each dataset by the guide and by the teacher; None without one, and for graded pairs.

    Attributes:
        guide: Those by the guide.
        teacher: Those by the teacher.
        models: What each of them is, by its name.
    """

    guide: Sequence[DatasetVectors | None]
    teacher: Sequence[DatasetVectors | None]
    models: Mapping[str, Digests] = field(default_factory=dict)

    def attach(self, batch: EmbedBatch) -> EmbedBatch:
        """The batch with the embeddings of its texts."""
        guide, teacher = self.guide[batch.source], self.teacher[batch.source]
        return replace(
            batch,
            guide=None if guide is None else guide.of_batch(batch.structure),
            teacher_vectors=None if teacher is None else teacher.of_batch(batch.structure),
        )

    def record(self, run: Path) -> None:
        """Leave in a run's folder what the guide and the teacher are, by which a resumed run knows them."""
        record_models(run, self.models)


def require_frozen_models(config: EmbedConfig) -> None:
    """Raise ValueError, before any weights load, for a guide or teacher that is no embedder or would be sharded."""
    for name, model in (("guide", config.guide), ("teacher", config.loss.teacher)):
        if model is None or is_stored(model):
            continue
        files = read_model_files(model)
        require_embedder(model, read_config(model, files.subfolder), pooled=files.pooling is not None)
        require(
            not (is_deepspeed_zero3_enabled() or is_fsdp_enabled()),
            f"loss.{name}: with ZeRO-3, and with FSDP2 where ranks load parts, it would be sharded; train with DDP, "
            "ZeRO-1 or ZeRO-2, or with fsdp_cpu_ram_efficient_loading: false",
        )


def open_frozen_vectors(
    config: EmbedConfig, sources: Sequence[Source], device: torch.device, *, show: bool
) -> FrozenVectors:
    """Load the guide and the teacher, one after the other, and encode all texts that are not cached.

    Raises:
        ValueError: One is not what the run in the output folder, which is resumed, began with.
    """
    models: dict[str, Digests] = {}

    def encode(name: str, model: str | None) -> list[DatasetVectors | None]:
        if model is None:
            return [None] * len(sources)
        tables = [source.table for source in sources]
        if is_stored(model):
            stored = StoredVectors(Path(model))
            models[name] = stored.digests
            return [None if each.graded else DatasetVectors.stored(stored, each) for each in tables]
        loaded = Embedder.from_pretrained(model, precision=computing_dtype(config.precision)).to(device)
        models[name] = digests_of(loaded)
        require_same_model(Path(config.output_dir), name, model, models[name])
        return [None if each.graded else DatasetVectors.encode(name, loaded, each, show=show) for each in tables]

    return FrozenVectors(encode("guide", config.guide), encode("teacher", config.loss.teacher), models)
