"""The searchers that a model may choose from: read from a file, and those that suit a document by an embedder."""

from pathlib import Path

import numpy as np

from nestling.mining.fingerprints import of_embedder
from nestling.mining.nearest import nearest
from nestling.mining.vectors import encode_cached
from nestling.models.embedder import Embedder
from nestling.records.lines import read_lines
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers
from nestling.synthesis.passages import Passages

# What a document is about shows in its beginning.
MAX_LENGTH = 512


def read_personas(path: Path) -> list[str]:
    """Different lines of a file that are not blank. Raises ValueError if there are none."""
    if not path.is_file():
        raise ValueError(f"{path}: file: there is no such file; expected one with a searcher a line")
    lines = (" ".join(line.split()) for _, line in read_lines(path))
    personas = list(dict.fromkeys(line for line in lines if line))
    if not personas:
        raise ValueError(f"{path}: file: holds no text; expected a searcher a line")
    return personas


def nearest_personas(
    embedder: Embedder, personas: list[str], passages: Passages, count: int, *, progress: bool = False
) -> Integers:
    """[N, count] int64: the personas nearest to each passage, nearest first; both are encoded as documents, cached."""
    fingerprint, prefix = of_embedder(embedder), embedder.prefix("document")
    documents, _ = encode_cached(
        embedder,
        passages.texts,
        passages.identities,
        fingerprint=fingerprint,
        max_length=MAX_LENGTH,
        prefix=prefix,
        progress="documents" if progress else None,
    )
    characters, _ = encode_cached(
        embedder,
        personas,
        np.array([text_id(each) for each in personas]),
        fingerprint=fingerprint,
        max_length=MAX_LENGTH,
        prefix=prefix,
    )
    return nearest(documents, characters, len(personas), count, embedder.device).rows
