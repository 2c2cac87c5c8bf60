"""Passages that a query needs together: chunks that follow one another in a file, or neighbours by an embedder.

Shapes: U documents that can be drawn, of which the first N are (`nestling.synthesis.passages`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from nestling.mining.nearest import nearest
from nestling.mining.vectors import Vectors
from nestling.models.embedder import Embedder
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers
from nestling.synthesis.embedding import embed
from nestling.synthesis.passages import Passages

# The id of a chunk, as scripts/read_documents.py gives it: its file and its number there.
CHUNK_ID = re.compile(r"(.+)#(\d{1,18})", re.DOTALL)
# A document with this cosine says what the other says, so that no query needs both.
COPY = 0.95
# So many of the nearest documents are looked at for some that are no copies.
COPIES = 16


@dataclass(frozen=True)
class PassageSets:
    """The documents that get a query of several passages.

    Args:
        sets: Document -> the passages of its query, itself first; all below U.
        near: How many of the sets are of neighbours by embedding.
        alone: How many further documents were drawn but have nothing to go with.
    """

    sets: Mapping[int, tuple[int, ...]]
    near: int = 0
    alone: int = 0

    def __str__(self) -> str:
        chunks = f"{len(self.sets) - self.near:,} with the chunks that follow, {self.near:,} with the nearest documents"
        return f"multi-hop: {len(self.sets):,} documents, {chunks}; {self.alone:,} more have nothing to go with"


def find_passage_sets(
    passages: Passages,
    shares: Mapping[int, float],
    seed: int,
    embedder: Embedder | None,
    *,
    progress: bool = False,
) -> PassageSets:
    """Draw documents, and find the passages that each goes with.

    Args:
        passages: The documents.
        shares: Number of passages -> share of the documents.
        seed: Seed of the draw, which depends on nothing else but the text.
        embedder: What finds neighbours of documents that no chunk follows; None to leave those out.
        progress: Show a bar while documents are encoded.

    Raises:
        ValueError: No chunk follows any document, and there is no embedder.
    """
    following = following_chunks(passages.usable_ids)
    if embedder is None and (following < 0).all():
        raise ValueError(
            f"multi_hop: no two documents of {passages.name} are chunks of one file, with ids such as guide.md#0 and "
            "guide.md#1; make the corpus with scripts/read_documents.py, or give an --embedder, which finds neighbours"
        )
    counts = draw_counts(passages.text_ids, shares, seed)
    found = {document: chain(following, document, count) for document, count in counts.items()}
    lonely = [document for document, chunks in found.items() if not chunks]
    if embedder is not None and lonely:
        found |= nearest_sets(embedder, passages, {document: counts[document] for document in lonely}, progress)
    kept = different_sets(found)
    return PassageSets(kept, len(kept.keys() & set(lonely)), len(counts) - len(kept))


def different_sets(found: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """The sets that are not empty, each once: two documents may be each other's nearest, of which the first gets it."""
    first: dict[frozenset[int], int] = {}
    for document, passages in found.items():
        first.setdefault(frozenset(passages), document)
    return {document: found[document] for passages, document in first.items() if passages}


def following_chunks(ids: Sequence[str]) -> Integers:
    """[U] int64: of each document the one that is the next chunk of its file, -1 if there is none."""
    files, numbers = np.full(len(ids), -1), np.zeros(len(ids), np.int64)
    for index, each in enumerate(ids):
        place = CHUNK_ID.fullmatch(each)
        if place is not None:
            files[index], numbers[index] = text_id(place[1]), int(place[2])
    order = np.lexsort((numbers, files))
    one, other = order[:-1], order[1:]
    same = (files[one] == files[other]) & (files[one] >= 0)
    following = np.full(len(ids), -1)
    following[one[same]] = other[same]
    return following


def draw_counts(text_ids: Integers, shares: Mapping[int, float], seed: int) -> dict[int, int]:
    """The documents that are drawn, in their order, each with its number of passages."""
    counts, ordered = {}, sorted(shares.items())
    for document, identity in enumerate(text_ids.tolist()):
        at = xxhash.xxh3_64_intdigest(f"{seed} multi_hop {identity}".encode()) / 2**64
        for number, share in ordered:
            if 0 <= at < share:
                counts[document] = number
            at -= share
    return counts


def chain(following: Integers, document: int, count: int) -> tuple[int, ...]:
    """A chunk and those that follow it, `count` in all; empty if there are fewer."""
    chunks = [document]
    while len(chunks) < count and following[chunks[-1]] >= 0:
        chunks.append(int(following[chunks[-1]]))
    return tuple(chunks) if len(chunks) == count else ()


def nearest_sets(
    embedder: Embedder, passages: Passages, counts: Mapping[int, int], progress: bool
) -> dict[int, tuple[int, ...]]:
    """Of each document itself and the nearest ones that are no copies of it; empty if there are too few."""
    label = "documents" if progress else None
    vectors = embed(embedder, passages.usable_texts, passages.usable_text_ids, kind="document", progress=label)
    own = vectors.take(np.array(list(counts))).numpy().astype(np.float16)
    found = nearest(Vectors([own], len(own)), vectors, len(vectors), COPIES, embedder.device)
    sets = {}
    for (document, count), near, scores in zip(counts.items(), found.documents, found.scores, strict=True):
        others = near[(near >= 0) & (near != document) & (scores < COPY)][: count - 1].tolist()
        sets[document] = (document, *others) if len(others) == count - 1 else ()
    return sets
