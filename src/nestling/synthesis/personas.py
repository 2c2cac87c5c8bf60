"""Personas that the model chooses from: read from a file, or those nearest to a document by an embedder."""

from pathlib import Path

import numpy as np

from nestling.mining.nearest import nearest
from nestling.models.embedder import Embedder
from nestling.records.lines import read_lines
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers
from nestling.synthesis.embedding import embed
from nestling.synthesis.passages import Passages


def read_personas(path: Path) -> list[str]:
    """The distinct non-blank lines of a file. Raises ValueError if there are none."""
    if not path.is_file():
        raise ValueError(f"{path}: file: there is no such file; expected a file with one persona per line")
    lines = (" ".join(line.split()) for _, line in read_lines(path))
    personas = list(dict.fromkeys(line for line in lines if line))
    if not personas:
        raise ValueError(f"{path}: file: holds no text; expected one persona per line")
    return personas


def nearest_personas(
    embedder: Embedder, personas: list[str], passages: Passages, count: int, *, progress: bool = False
) -> Integers:
    """[N, count] int64: indices of the nearest personas of each passage, nearest first.

    Both are encoded as documents, through the cache of embeddings.
    """
    label = "documents" if progress else None
    documents = embed(embedder, passages.texts, passages.text_ids, kind="document", progress=label)
    persona_ids = np.array([text_id(persona) for persona in personas])
    persona_vectors = embed(embedder, personas, persona_ids, kind="document")
    return nearest(documents, persona_vectors, len(personas), count, embedder.device).documents
