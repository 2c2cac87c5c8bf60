"""Nearly equal texts: candidates by MinHash and bands (locality-sensitive hashing), each verified by exact Jaccard.

1. Texts that agree in a band of hashes are candidates.
2. Those whose hashes agree too seldom for the threshold are left out, which is fast.
3. The exact similarity of the rest is computed from their texts.

No pair that is reported is false. A pair at the threshold is missed with a probability of about `MISS`, beside what
`IN_BUCKET` leaves out.

Shapes: N texts, B bands, C pairs. A pair is (earlier text, later text), by number.
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
MISS = 1e-3
# Texts that share a band are compared with the first so many of these: the work stays linear when thousands are alike.
IN_BUCKET = 32
# Step 2 allows the estimated similarity to fall short of the threshold by so many of its standard deviations.
DEVIATIONS = 4
CANDIDATES_PER_BLOCK = 1 << 18
TEXTS_PER_BLOCK = 4096
PAIRS_PER_BLOCK = 2048  # whose shingles are in memory
PAIR_SHIFT = 32
# Odd numbers of 64 bits that spread what they multiply (the golden ratio; SplitMix64).
SPREAD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Nearness:
    """What counts as nearly equal.

    Args:
        threshold: Least Jaccard similarity of the shingles, above 0, at most 1.
        shingle: Words in a shingle.
    """

    threshold: float
    shingle: int


@dataclass(frozen=True)
class Sketch:
    """What stays in memory of N texts.

    Args:
        normal_ids: [N] int64, identities of the normalised texts.
        bands: [N, B] uint32; texts that agree in a band are candidates.
        signs: [N, PERMUTATIONS] uint8, the low bytes of the hashes.
    """

    normal_ids: np.ndarray
    bands: np.ndarray
    signs: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Verified pairs, sorted by their second text, then the first.

    Args:
        first: [C] int64.
        second: [C] int64.
        similarity: [C] float64, exact Jaccard similarities.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def sketch(texts: Sequence[str], nearness: Nearness, label: str | None = None) -> Sketch:
    """Stream over texts; 4 B + 136 bytes of each stay. `label` names the progress bar; None shows none."""
    count, rows = choose_bands(nearness.threshold)
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    bands: list[np.ndarray] = [np.zeros((0, count), np.uint32)]
    signs: list[np.ndarray] = [np.zeros((0, PERMUTATIONS), np.uint8)]
    starts = range(0, len(texts), TEXTS_PER_BLOCK)
    for start in tqdm(starts, desc=label, unit_scale=TEXTS_PER_BLOCK, unit=" texts", delay=1, disable=label is None):
        normalised = [normalise(text) for text in texts[start : start + TEXTS_PER_BLOCK]]
        ids.append(np.array([text_id(text) for text in normalised], dtype=np.int64))
        tokens = [list(shingles(text, nearness.shingle)) for text in normalised]
        matrix = RMinHash.digest_matrix_from_token_sets(tokens, PERMUTATIONS, SEED)
        hashes = np.array(matrix.to_rows(), dtype=np.uint32)
        bands.append(_fold(hashes, count, rows))
        signs.append(hashes.astype(np.uint8))
    return Sketch(np.concatenate(ids), np.concatenate(bands), np.concatenate(signs))


def choose_bands(threshold: float) -> tuple[int, int]:
    """(bands, hashes in each): the longest bands in which a pair at the threshold agrees somewhere, but for `MISS`."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands < MISS:
            return bands, rows
    return PERMUTATIONS, 1


def pairs_within(texts: Sequence[str], own: Sketch, nearness: Nearness) -> Pairs:
    """Nearly equal pairs of N texts."""
    candidates = (pair for band in own.bands.T for pair in _agreeing(band))
    codes = _likely(candidates, own, own, nearness)
    return _verify(codes, texts, own.normal_ids, texts, own.normal_ids, nearness)


def pairs_between(
    texts: Sequence[str], own: Sketch, others: Sequence[str], of_others: Sketch, nearness: Nearness
) -> Pairs:
    """Nearly equal pairs of a text (first) and one of the others (second)."""
    bands = zip(own.bands.T, of_others.bands.T, strict=True)
    candidates = (pair for band, other in bands for pair in _agreeing_with(band, other))
    codes = _likely(candidates, own, of_others, nearness)
    return _verify(codes, texts, own.normal_ids, others, of_others.normal_ids, nearness)


def later(pairs: Pairs, kept: np.ndarray) -> np.ndarray:
    """[N] bool: the kept texts that nearly equal an earlier one which stays.

    Each of them has such a text; nearness is not handed on along a chain.

    Args:
        pairs: Pairs among N texts.
        kept: [N] bool, the texts to choose from.
    """
    found = np.zeros(len(kept), dtype=bool)
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if kept[second] and kept[first] and not found[first]:
            found[second] = True
    return found


def _fold(hashes: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """[N, B] uint32: one hash for the hashes of each band."""
    grouped = hashes[:, : bands * rows].reshape(len(hashes), bands, rows).astype(np.uint64)
    folded = np.zeros((len(hashes), bands), np.uint64)
    for column in range(rows):
        folded = (folded ^ grouped[:, :, column]) * SPREAD
        folded = (folded ^ (folded >> np.uint64(29))) * MIX
    return (folded >> np.uint64(32)).astype(np.uint32)


def _agreeing(band: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of texts that agree in a band: each with the first `IN_BUCKET` of its bucket."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))[: len(band)]
    begin = np.repeat(begins, np.diff(np.append(begins, len(band))))
    rank = np.arange(len(band)) - begin
    for earlier in range(min(IN_BUCKET, int(rank.max(initial=0)))):
        at = np.flatnonzero(rank > earlier)
        yield order[begin[at] + earlier], order[at]


def _agreeing_with(band: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a text and another list's that agree in a band: each with the first `IN_BUCKET` of these."""
    order = np.argsort(other, kind="stable")
    begin, end = (np.searchsorted(other[order], band, side=side) for side in ("left", "right"))
    for rank in range(min(IN_BUCKET, int((end - begin).max(initial=0)))):
        at = np.flatnonzero(begin + rank < end)
        yield at, order[begin[at] + rank]


def _likely(
    candidates: Iterable[tuple[np.ndarray, np.ndarray]], own: Sketch, others: Sketch, nearness: Nearness
) -> np.ndarray:
    """Sorted codes of the candidates, first << PAIR_SHIFT | second, that agree in enough of their hashes."""
    deviation = (nearness.threshold * (1 - nearness.threshold) / PERMUTATIONS) ** 0.5
    least = PERMUTATIONS * (nearness.threshold - DEVIATIONS * deviation)
    codes, waiting, count = np.zeros(0, np.int64), [np.zeros(0, np.int64)], 0
    for first, second in candidates:
        for start in range(0, len(first), CANDIDATES_PER_BLOCK):
            block = slice(start, start + CANDIDATES_PER_BLOCK)
            agreeing = (own.signs[first[block]] == others.signs[second[block]]).sum(axis=1)
            likely = agreeing >= least
            waiting.append(first[block][likely] << PAIR_SHIFT | second[block][likely])
            count += len(waiting[-1])
        if count > max(len(codes), CANDIDATES_PER_BLOCK):
            codes, waiting, count = _merge([codes, *waiting]), [], 0
    return _merge([codes, *waiting])


def _merge(parts: list[np.ndarray]) -> np.ndarray:
    """Sorted distinct values; np.unique hashes them, which takes ten times as long."""
    merged = np.sort(np.concatenate(parts))
    distinct: np.ndarray = merged[np.concatenate([[True], merged[1:] != merged[:-1]])[: len(merged)]]
    return distinct


def _verify(
    codes: np.ndarray,
    texts: Sequence[str],
    ids: np.ndarray,
    others: Sequence[str],
    of_others: np.ndarray,
    nearness: Nearness,
) -> Pairs:
    first, second = codes >> PAIR_SHIFT, codes & ((1 << PAIR_SHIFT) - 1)
    similarity = np.ones(len(codes))  # of texts with the same identity
    unequal = np.flatnonzero(ids[first] != of_others[second])
    for start in range(0, len(unequal), PAIRS_PER_BLOCK):
        block = unequal[start : start + PAIRS_PER_BLOCK]
        own, other = _shingles(texts, first[block], nearness), _shingles(others, second[block], nearness)
        similarity[block] = [
            jaccard(own[a], other[b]) for a, b in zip(first[block].tolist(), second[block].tolist(), strict=True)
        ]
    kept = np.flatnonzero(similarity >= nearness.threshold)
    kept = kept[np.lexsort((first[kept], second[kept]))]
    return Pairs(first[kept], second[kept], similarity[kept])


def _shingles(texts: Sequence[str], numbers: np.ndarray, nearness: Nearness) -> dict[int, set[str]]:
    wanted = np.unique(numbers).tolist()
    read = texts[wanted] if isinstance(texts, Texts) else [texts[i] for i in wanted]
    return {i: shingles(normalise(text), nearness.shingle) for i, text in zip(wanted, read, strict=True)}
