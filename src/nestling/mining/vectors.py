"""Embeddings of many texts as shards of fp16 in the cache, made once for each model, prompt, length and text.

A shard is keyed by its texts, so a changed text costs one shard, and a killed run goes on behind the last whole one.
Every shard is encoded by itself: its bytes do not depend on how many ranks there are.

Shapes: n texts, D dimensions.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_and_world
from nestling.mining.arrays import ArrayCache, cache_folder
from nestling.models.embedder import Embedder
from nestling.models.encoding import WINDOW, EncodingStats, encode_texts, single_process
from nestling.retrieval.collectives import sum_stats
from nestling.retrieval.metrics import Integers

# Texts of a shard: what the encoder sorts by length together.
SHARD = WINDOW

Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Vectors:
    """Normalised embeddings of n texts.

    Attributes:
        shards: [at most `height`, D] float16 each, memory-mapped.
        height: Texts of every shard but the last.
    """

    shards: list[Halves]
    height: int

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def span(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Those from `start` to `stop`, [stop - start, D] float32."""
        parts = [
            shard[max(start - first, 0) : max(stop - first, 0)]
            for first, shard in zip(range(0, len(self), self.height), self.shards, strict=True)
            if first < stop and start < first + len(shard)
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(whole).to(device).float()

    def take(self, rows: Integers) -> Tensor:
        """Those at some rows, [m, D] float32 on the CPU."""
        taken = np.empty((len(rows), self.shards[0].shape[1]), np.float16)
        shard_of = rows // self.height
        for each in np.unique(shard_of).tolist():
            at = np.flatnonzero(shard_of == each)
            taken[at] = self.shards[each][rows[at] - each * self.height]
        return torch.from_numpy(taken).float()


def encode_cached(
    embedder: Embedder,
    texts: Sequence[str],
    identities: Integers,
    *,
    fingerprint: str,
    max_length: int,
    prefix: str = "",
    folder: Path | None = None,
    max_over_ranks: Callable[[int], int] = single_process,
    progress: str | None = None,
) -> tuple[Vectors, EncodingStats]:
    """Embeddings of texts, those that the cache has not yet encoded, by all ranks together, which must all call it.

    Args:
        embedder: The model.
        texts: n texts.
        identities: [n] int64, what tells whether a text has changed.
        fingerprint: Of the model (`fingerprints.of_embedder`).
        max_length: Tokens of a text, prompt and special tokens included.
        prefix: The prompt before each text.
        folder: Where the shards are kept, if not in the cache.
        max_over_ranks: As in `encode_texts`.
        progress: Label of a bar.

    Returns:
        The embeddings, and what encoding took on all ranks.

    Raises:
        ValueError: The model gave embeddings that are not finite, or the ranks do not share the cache folder.
        CacheError: The cache cannot be written.
    """
    started, stats = time.perf_counter(), EncodingStats()
    key = xxhash.xxh3_64_hexdigest(json.dumps([fingerprint, prefix, max_length, SHARD]).encode())
    kept = cache_folder(embedder.source.rstrip("/").replace("/", "-"), key) if folder is None else folder / key
    cache = ArrayCache(kept)
    keys = [shard_key(identities[start : start + SHARD]) for start in range(0, len(texts), SHARD)]
    # Asked of one rank, since the others' answers would depend on what is being written.
    missing = on_rank_zero(lambda: [i for i, each in enumerate(keys) if cache.open(each) is None])
    rank, world = rank_and_world()

    def encode() -> None:
        own = missing[rank::world]
        blocks = encode_texts(
            embedder,
            Shards(texts, own),
            prefix=prefix,
            max_length=max_length,
            max_over_ranks=max_over_ranks,
            progress=progress,
            stats=stats,
        )
        failure: Exception | None = None
        for i, (_, block) in zip(chain(own, repeat(None)), blocks, strict=False):  # empty ones after this rank's
            try:
                if i is not None and failure is None:
                    require_finite(block, embedder.source)
                    cache.write(keys[i], block.numpy().astype(np.float16))
            except (OSError, ValueError) as error:
                if max_over_ranks is single_process:
                    raise
                failure = error  # the others wait for this rank's part in their forwards
        if failure is not None:
            raise failure

    on_every_rank(encode)
    total = sum_stats(stats, embedder.device)
    total.seconds = time.perf_counter() - started
    opened: list[Halves] = []

    def collect() -> None:
        opened.extend(must_open(cache, each) for each in keys)

    on_every_rank(collect)
    return Vectors(opened, SHARD), total


class Shards(Sequence[str]):
    """The texts of some shards, one shard after the other; read by whole shards."""

    def __init__(self, texts: Sequence[str], shards: Sequence[int]) -> None:
        self._texts, self._shards = texts, shards
        self._count = sum(len(range(i * SHARD, min((i + 1) * SHARD, len(texts)))) for i in shards)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, slice) and index.start % SHARD == 0
        first = self._shards[index.start // SHARD] * SHARD
        return self._texts[first : first + index.stop - index.start]


def shard_key(identities: Integers) -> str:
    return xxhash.xxh3_128_hexdigest(identities.tobytes())


def must_open(cache: ArrayCache, key: str) -> Halves:
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


def prompted(texts: Sequence[str], prefixes: Sequence[str]) -> Sequence[str]:
    """Each text behind its own prefix, read when asked for."""
    return Prompted(texts, prefixes) if any(prefixes) else texts


class Prompted(Sequence[str]):
    """Texts behind prefixes."""

    def __init__(self, texts: Sequence[str], prefixes: Sequence[str]) -> None:
        self._texts, self._prefixes = texts, prefixes

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [a + b for a, b in zip(self._prefixes[index], self._texts[index], strict=True)]
        return self._prefixes[index] + self._texts[index]
