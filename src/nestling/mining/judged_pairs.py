"""Logits of query-document pairs in the cache, found pair by pair: with other thresholds only new pairs are judged.

Shapes: n pairs.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from nestling.mining.array_cache import ArrayCache, cache_folder
from nestling.mining.lists import Lists
from nestling.mining.retrieved import Scores
from nestling.mining.selection import splitmix64
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers

PAIR = np.dtype([("pair", np.uint64), ("logit", np.float32)])
PairIds = NDArray[np.uint64]


class JudgedPairs:
    """The logits that a judge gave, in files of some pairs each.

    Args:
        source: Directory or hub id of the judge.
        fingerprint: Identifies it.
    """

    def __init__(self, source: str, fingerprint: str) -> None:
        self._cache = ArrayCache(cache_folder(f"judged-pairs-{Path(source).name}", fingerprint))

    @property
    def folder(self) -> Path:
        return self._cache.folder

    def find(self, pairs: PairIds) -> Scores:
        """[n] float32: the logits of n pairs; NaN where there is none. Reads all files."""
        known = np.concatenate([np.zeros(0, PAIR), *self._files()])
        logits = np.full(len(pairs), np.nan, np.float32)
        if len(known):
            order = np.argsort(known["pair"], kind="stable")
            at = order[np.minimum(np.searchsorted(known["pair"], pairs, sorter=order), len(known) - 1)]
            found = known["pair"][at] == pairs
            logits[found] = known["logit"][at[found]]
        return logits

    def write(self, pairs: PairIds, logits: Scores) -> None:
        """Add the logits of n pairs. Raises CacheError if the cache cannot be written."""
        judged = np.empty(len(pairs), PAIR)
        judged["pair"], judged["logit"] = pairs, logits
        self._cache.write(xxhash.xxh3_128_hexdigest(pairs.tobytes()), judged)

    def _files(self) -> Iterable[np.ndarray]:
        opened = (self._cache.open(path.stem) for path in sorted(self.folder.glob("*.npy")))
        return (each for each in opened if each is not None)


def pair_ids(queries: Integers, instructions: Sequence[str | None], documents: Lists) -> PairIds:
    """[n] uint64: hashes of query, instruction and document.

    Args:
        queries: [Q] int64, `query_id` of each query.
        instructions: The instruction of each query.
        documents: For each query the `text_id` of its documents, n in all.
    """
    of_instructions = np.array([0 if each is None else text_id(each) for each in instructions], np.uint64)
    of_queries = splitmix64(splitmix64(queries.astype(np.uint64)) ^ of_instructions)
    return splitmix64(of_queries[documents.owners] ^ documents.values.astype(np.uint64))
