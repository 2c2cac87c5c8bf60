"""Embeddings of texts for the synthesis of queries, through the cache."""

from collections.abc import Sequence

from nestling.mining.cached_encoder import CachedEncoder
from nestling.mining.fingerprints import embedder_fingerprint
from nestling.mining.vectors import Vectors
from nestling.models.embedder import Embedder
from nestling.records.record import Kind
from nestling.retrieval.metrics import Integers

MAX_LENGTH = 512  # tokens, or as many as the model reads; the beginning of a document tells its subject


def embed(
    embedder: Embedder, texts: Sequence[str], text_ids: Integers, *, kind: Kind, progress: str | None = None
) -> Vectors:
    """Normalised embeddings of n texts.

    Args:
        embedder: The model.
        texts: n texts.
        text_ids: [n] int64, `text_id` of each.
        kind: Whether they get the prompt of queries or of documents.
        progress: Label of a progress bar; None for no bar.
    """
    encoder = CachedEncoder(
        embedder,
        fingerprint=embedder_fingerprint(embedder),
        max_length=min(MAX_LENGTH, embedder.max_seq_length),
        prefix=embedder.prefix(kind),
    )
    return encoder.encode(texts, text_ids, progress=progress)[0]
