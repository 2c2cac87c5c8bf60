"""Logits of query-document pairs in the cache, found pair by pair: with other thresholds only new pairs are judged.

Shapes: n pairs.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from nestling.mining.array_cache import ArrayCache, cache_folder
from nestling.mining.lists import Lists
from nestling.mining.pool import Pool
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Scores
from nestling.mining.selection import splitmix64
from nestling.records.record import text_id

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


def pair_ids(query_set: QuerySet, pool: Pool, lists: Lists) -> PairIds:
    """[n] uint64: hashes of query, instruction and document of listed documents, as positions in the pool."""
    instructions = [0 if each is None else text_id(each) for each in query_set.instructions]
    queries = splitmix64(query_set.identities.astype(np.uint64)) ^ np.array(instructions, np.uint64)
    return splitmix64(splitmix64(queries)[lists.owners] ^ pool.identities[lists.values].astype(np.uint64))
