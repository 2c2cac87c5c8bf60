"""Encoding of many texts through the cache: shards of float16 embeddings, of which only missing ones are encoded.

A shard's cache key is made of the model, the prompt, the maximum length and the shard's texts. So a changed text costs
one shard, and a run that was killed continues after the last complete shard. Each shard is encoded separately, so its
bytes do not depend on the number of ranks.

Shapes: n texts, D dimensions.
"""

import json
import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_and_world
from nestling.mining.array_cache import ArrayCache, cache_folder
from nestling.mining.vectors import Float16Array, Vectors
from nestling.models.embedder import Embedder
from nestling.models.encoding import WINDOW, EncodingStats, encode_texts, single_process
from nestling.retrieval.collectives import sum_stats
from nestling.retrieval.metrics import Integers

# The encoder sorts the texts of one window by length, and a shard is one window.
TEXTS_PER_SHARD = WINDOW


class CachedEncoder:
    """An embedder whose embeddings are kept in the cache.

    Args:
        embedder: The model.
        fingerprint: Identifies the model (`fingerprints.embedder_fingerprint`).
        max_length: Tokens of a text, prompt and special tokens included.
        prefix: The prompt before each text; or prompts, one for each text.
        folder: Where shards are written; by default in the cache.
        max_over_ranks: As in `encode_texts`.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        fingerprint: str,
        max_length: int,
        prefix: str | Sequence[str] = "",
        folder: Path | None = None,
        max_over_ranks: Callable[[int], int] = single_process,
    ) -> None:
        self._embedder, self._max_length, self._prefix = embedder, max_length, prefix
        self._max_over_ranks = max_over_ranks
        shared = prefix if isinstance(prefix, str) else ""  # prompts of each text are in the keys of shards
        key = xxhash.xxh3_64_hexdigest(json.dumps([fingerprint, shared, max_length, TEXTS_PER_SHARD]).encode())
        name = embedder.source.rstrip("/").replace("/", "-")
        self._cache = ArrayCache(cache_folder(name, key) if folder is None else folder / key)

    def encode(
        self, texts: Sequence[str], identities: Integers, *, progress: str | None = None
    ) -> tuple[Vectors, EncodingStats]:
        """Embeddings of n texts; the missing shards are divided among all ranks, which must all call this.

        Args:
            texts: n texts.
            identities: [n] or [n, m] int64, different for texts that are different, their own prefixes included.
            progress: Label of a progress bar; None for no bar.

        Returns:
            The embeddings, and the statistics of encoding, summed over ranks.

        Raises:
            ValueError: The model gave embeddings that are not finite, or the ranks do not share the cache folder.
            CacheError: The cache cannot be written.
        """
        started, stats = time.perf_counter(), EncodingStats()
        keys = [shard_key(identities[i : i + TEXTS_PER_SHARD]) for i in range(0, len(texts), TEXTS_PER_SHARD)]
        # Rank 0 decides for all: what other ranks would see depends on what is being written meanwhile.
        missing = on_rank_zero(lambda: [i for i, key in enumerate(keys) if self._cache.open(key) is None])
        rank, world = rank_and_world()
        on_every_rank(lambda: self._write_shards(texts, keys, missing[rank::world], stats, progress))
        total = sum_stats(stats, self._embedder.device)
        total.seconds = time.perf_counter() - started
        return Vectors(self._open_shards(keys), TEXTS_PER_SHARD), total

    def _write_shards(
        self, texts: Sequence[str], keys: Sequence[str], shards: Sequence[int], stats: EncodingStats, label: str | None
    ) -> None:
        """Encode and write some shards, given by number."""
        blocks = encode_texts(
            self._embedder,
            ShardTexts(texts, shards),
            prefix=self._prefix if isinstance(self._prefix, str) else ShardTexts(self._prefix, shards),
            max_length=self._max_length,
            max_over_ranks=self._max_over_ranks,
            progress=label,
            stats=stats,
        )
        failure: Exception | None = None
        # Where the forward is a collective, empty blocks follow this rank's own until all ranks are done.
        for shard, (_, block) in zip(chain(shards, repeat(None)), blocks, strict=False):
            if shard is None or failure is not None:
                continue
            try:
                self._write_shard(keys[shard], block)
            except (OSError, ValueError) as error:
                if self._max_over_ranks is single_process:
                    raise
                failure = error  # raised after the last block, since other ranks' forwards wait for this rank's
        if failure is not None:
            raise failure

    def _write_shard(self, key: str, block: Tensor) -> None:
        require_finite(block, self._embedder.source)
        self._cache.write(key, block.numpy().astype(np.float16))

    def _open_shards(self, keys: Sequence[str]) -> list[Float16Array]:
        shards: list[Float16Array] = []
        on_every_rank(lambda: shards.extend(open_written(self._cache, key) for key in keys))
        return shards


class ShardTexts(Sequence[str]):
    """The texts of some shards, one shard after the other; only slices that are whole shards can be read."""

    def __init__(self, texts: Sequence[str], shards: Sequence[int]) -> None:
        self._texts, self._shards = texts, shards
        starts = [shard * TEXTS_PER_SHARD for shard in shards]
        self._count = sum(min(start + TEXTS_PER_SHARD, len(texts)) - start for start in starts)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, slice) and index.start % TEXTS_PER_SHARD == 0
        first = self._shards[index.start // TEXTS_PER_SHARD] * TEXTS_PER_SHARD
        return self._texts[first : first + index.stop - index.start]


def shard_key(identities: Integers) -> str:
    return xxhash.xxh3_128_hexdigest(identities.tobytes())


def open_written(cache: ArrayCache, key: str) -> Float16Array:
    """A shard that some rank has just written. Raises ValueError if it is not there."""
    shard = cache.open(key)
    if shard is None:
        raise ValueError(
            f"{cache.folder} lacks a shard that was just encoded; the ranks must share this folder: set NESTLING_CACHE "
            "to one on a disk that all of them see"
        )
    return shard


def require_finite(block: Tensor, source: str) -> None:
    bad = int((~block.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{source} gave NaN or infinity for {bad} of {len(block)} texts; its weights may have diverged, or need "
            "float32 instead of a shorter type"
        )
