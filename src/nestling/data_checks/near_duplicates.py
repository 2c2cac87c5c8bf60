"""Near duplicates: candidate pairs by MinHash and locality-sensitive hashing, verified by exact Jaccard similarity.

1. Two texts with the same hash of a band are a candidate pair.
2. Candidate pairs that have too few equal MinHash values for the threshold are discarded, which is fast.
3. The exact Jaccard similarity of the remaining pairs is computed from the shingles of their texts.

There are no false positives. A pair at the threshold is missed with a probability of about `MISS_PROBABILITY`, in
addition to the pairs that `COMPARED_PER_BUCKET` leaves out.

Shapes: N texts, B bands, C pairs. A pair is (index of the earlier text, index of the later text).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash
from tqdm import tqdm

from nestling.data_checks.normalise import jaccard, normalise, shingles
from nestling.records.record import text_id
from nestling.records.texts import Texts

PERMUTATIONS = 128
SEED = 1
MISS_PROBABILITY = 1e-3
# Texts with the same hash of a band form a bucket. Each is compared with the first texts of its bucket only, so that
# the work stays linear when thousands of texts are alike.
COMPARED_PER_BUCKET = 32
# In step 2 the estimated similarity may be this many standard deviations below the threshold.
MAX_DEVIATIONS = 4
CANDIDATES_PER_BLOCK = 1 << 18
TEXTS_PER_BLOCK = 4096
PAIRS_PER_BLOCK = 2048  # pairs whose shingles are in memory at a time
PAIR_SHIFT = 32
# Odd 64-bit multipliers for mixing hashes (the golden ratio; SplitMix64).
GOLDEN_RATIO, SPLITMIX64 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class NearDuplicateCriterion:
    """When two texts are near duplicates.

    Args:
        threshold: Minimum Jaccard similarity of their sets of shingles, above 0, at most 1.
        shingle: Words per shingle.
    """

    threshold: float
    shingle: int


@dataclass(frozen=True)
class MinHashes:
    """MinHash values of N texts.

    Args:
        normalised_ids: [N] int64, `text_id` of the normalised texts.
        bands: [N, B] uint32, one hash for each band; texts with an equal one are candidates.
        hash_bytes: [N, PERMUTATIONS] uint8, the low byte of each MinHash value.
    """

    normalised_ids: np.ndarray
    bands: np.ndarray
    hash_bytes: np.ndarray


@dataclass(frozen=True)
class NearDuplicatePairs:
    """Verified near duplicates, sorted by `second`, then `first`.

    Args:
        first: [C] int64, indices of the first texts of the pairs.
        second: [C] int64, indices of the second texts.
        similarity: [C] float64, exact Jaccard similarities.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def minhash_texts(texts: Sequence[str], criterion: NearDuplicateCriterion, label: str | None = None) -> MinHashes:
    """Compute the MinHash values of texts, reading them in blocks; 4 B + 136 bytes per text stay in memory.

    Args:
        texts: The texts.
        criterion: Its threshold decides on the bands.
        label: Label of the progress bar; None for no bar.
    """
    count, hashes_per_band = choose_bands(criterion.threshold)
    # Filled in place: put together at the end they would be in memory twice.
    ids = np.zeros(len(texts), np.int64)
    bands = np.zeros((len(texts), count), np.uint32)
    hash_bytes = np.zeros((len(texts), PERMUTATIONS), np.uint8)
    starts = range(0, len(texts), TEXTS_PER_BLOCK)
    for start in tqdm(starts, desc=label, unit_scale=TEXTS_PER_BLOCK, unit=" texts", delay=1, disable=label is None):
        block = slice(start, start + TEXTS_PER_BLOCK)
        normalised = [normalise(text) for text in texts[block]]
        ids[block] = [text_id(text) for text in normalised]
        tokens = [list(shingles(text, criterion.shingle)) for text in normalised]
        matrix = RMinHash.digest_matrix_from_token_sets(tokens, PERMUTATIONS, SEED)
        hashes = np.array(matrix.to_rows(), dtype=np.uint32)
        bands[block] = _fold(hashes, count, hashes_per_band)
        hash_bytes[block] = hashes.astype(np.uint8)
    return MinHashes(ids, bands, hash_bytes)


def choose_bands(threshold: float) -> tuple[int, int]:
    """(number of bands, MinHash values per band).

    These are the longest bands with which a pair at the threshold is missed with a probability below
    `MISS_PROBABILITY`.
    """
    for hashes_per_band in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // hashes_per_band
        if (1 - threshold**hashes_per_band) ** bands < MISS_PROBABILITY:
            return bands, hashes_per_band
    return PERMUTATIONS, 1


def near_duplicates_within(
    texts: Sequence[str], minhashes: MinHashes, criterion: NearDuplicateCriterion
) -> NearDuplicatePairs:
    """All near duplicates among N texts."""
    candidates = (pair for band in minhashes.bands.T for pair in _candidates_within(band))
    codes = _filter_by_hashes(candidates, minhashes, minhashes, criterion)
    return _verify(codes, texts, minhashes.normalised_ids, texts, minhashes.normalised_ids, criterion)


def near_duplicates_between(
    texts: Sequence[str],
    minhashes: MinHashes,
    others: Sequence[str],
    other_minhashes: MinHashes,
    criterion: NearDuplicateCriterion,
) -> NearDuplicatePairs:
    """All pairs of one of `texts` (first) and one of `others` (second) that are near duplicates."""
    bands = zip(minhashes.bands.T, other_minhashes.bands.T, strict=True)
    candidates = (pair for band, other in bands for pair in _candidates_between(band, other))
    codes = _filter_by_hashes(candidates, minhashes, other_minhashes, criterion)
    return _verify(codes, texts, minhashes.normalised_ids, others, other_minhashes.normalised_ids, criterion)


def later_duplicates(pairs: NearDuplicatePairs, kept: np.ndarray) -> np.ndarray:
    """[N] bool: the texts of `kept` to remove, each of which is a near duplicate of an earlier one that remains.

    The relation is not transitive: of a chain in which only neighbours are near duplicates, every second text remains.

    Args:
        pairs: Near duplicates among N texts.
        kept: [N] bool, the texts to consider.
    """
    found = np.zeros(len(kept), dtype=bool)
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if kept[second] and kept[first] and not found[first]:
            found[second] = True
    return found


def _fold(hashes: np.ndarray, bands: int, hashes_per_band: int) -> np.ndarray:
    """[N, B] uint32: one hash per band of the MinHash values [N, PERMUTATIONS]."""
    grouped = hashes[:, : bands * hashes_per_band].reshape(len(hashes), bands, hashes_per_band).astype(np.uint64)
    folded = np.zeros((len(hashes), bands), np.uint64)
    for column in range(hashes_per_band):
        folded = (folded ^ grouped[:, :, column]) * GOLDEN_RATIO
        folded = (folded ^ (folded >> np.uint64(29))) * SPLITMIX64
    return (folded >> np.uint64(32)).astype(np.uint32)


def _candidates_within(band: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidate pairs of one band [N]: each text with the first `COMPARED_PER_BUCKET` texts of its bucket."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    bucket_starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))[: len(band)]
    begin = np.repeat(bucket_starts, np.diff(np.append(bucket_starts, len(band))))
    rank = np.arange(len(band)) - begin
    for earlier in range(min(COMPARED_PER_BUCKET, int(rank.max(initial=0)))):
        at = np.flatnonzero(rank > earlier)
        yield order[begin[at] + earlier], order[at]


def _candidates_between(band: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidate pairs of one band of two lists of texts: each text with the first `COMPARED_PER_BUCKET` others."""
    order = np.argsort(other, kind="stable")
    begin, end = (np.searchsorted(other[order], band, side=side) for side in ("left", "right"))
    for rank in range(min(COMPARED_PER_BUCKET, int((end - begin).max(initial=0)))):
        at = np.flatnonzero(begin + rank < end)
        yield at, order[begin[at] + rank]


def _filter_by_hashes(
    candidates: Iterable[tuple[np.ndarray, np.ndarray]],
    minhashes: MinHashes,
    others: MinHashes,
    criterion: NearDuplicateCriterion,
) -> np.ndarray:
    """Step 2: the candidate pairs with enough equal MinHash values, as sorted codes first << PAIR_SHIFT | second."""
    deviation = (criterion.threshold * (1 - criterion.threshold) / PERMUTATIONS) ** 0.5
    least = PERMUTATIONS * (criterion.threshold - MAX_DEVIATIONS * deviation)
    codes, pending, count = np.zeros(0, np.int64), [np.zeros(0, np.int64)], 0
    for first, second in candidates:
        for start in range(0, len(first), CANDIDATES_PER_BLOCK):
            block = slice(start, start + CANDIDATES_PER_BLOCK)
            equal = (minhashes.hash_bytes[first[block]] == others.hash_bytes[second[block]]).sum(axis=1)
            likely = equal >= least
            pending.append(first[block][likely] << PAIR_SHIFT | second[block][likely])
            count += len(pending[-1])
        if count > max(len(codes), CANDIDATES_PER_BLOCK):
            codes, pending, count = _merge([codes, *pending]), [], 0
    return _merge([codes, *pending])


def _merge(parts: list[np.ndarray]) -> np.ndarray:
    """The sorted distinct values of several arrays; np.unique would hash them, which takes ten times as long."""
    merged = np.sort(np.concatenate(parts))
    distinct: np.ndarray = merged[np.concatenate([[True], merged[1:] != merged[:-1]])[: len(merged)]]
    return distinct


def _verify(
    codes: np.ndarray,
    texts: Sequence[str],
    ids: np.ndarray,
    others: Sequence[str],
    other_minhashes: np.ndarray,
    criterion: NearDuplicateCriterion,
) -> NearDuplicatePairs:
    first, second = codes >> PAIR_SHIFT, codes & ((1 << PAIR_SHIFT) - 1)
    similarity = np.ones(len(codes))  # for equal normalised texts
    unequal = np.flatnonzero(ids[first] != other_minhashes[second])
    for start in range(0, len(unequal), PAIRS_PER_BLOCK):
        block = unequal[start : start + PAIRS_PER_BLOCK]
        first_shingles, second_shingles = (
            _shingles(texts, first[block], criterion),
            _shingles(others, second[block], criterion),
        )
        similarity[block] = [
            jaccard(first_shingles[a], second_shingles[b])
            for a, b in zip(first[block].tolist(), second[block].tolist(), strict=True)
        ]
    kept = np.flatnonzero(similarity >= criterion.threshold)
    kept = kept[np.lexsort((first[kept], second[kept]))]
    return NearDuplicatePairs(first[kept], second[kept], similarity[kept])


def _shingles(texts: Sequence[str], numbers: np.ndarray, criterion: NearDuplicateCriterion) -> dict[int, set[str]]:
    wanted = np.unique(numbers).tolist()
    read = texts[wanted] if isinstance(texts, Texts) else [texts[i] for i in wanted]
    return {i: shingles(normalise(text), criterion.shingle) for i, text in zip(wanted, read, strict=True)}
