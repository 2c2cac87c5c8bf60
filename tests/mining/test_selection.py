"""Unions of candidates, rules, thresholds and draws against naive loops."""

import numpy as np
import pytest

from nestling.mining.candidates import union_candidates
from nestling.mining.consistency import within_top
from nestling.mining.lists import Lists
from nestling.mining.retrieved import Retrieved
from nestling.mining.selection import (
    CandidateFilter,
    Thresholds,
    draw,
    highest_similarity,
    lowest_positive,
    make_random_keys,
    outside_ranks,
    repeated,
    threshold_hits,
)


def random_retrieved(rng: np.random.Generator, queries: int, depth: int, documents: int) -> Retrieved:
    retrieved = Retrieved.empty(queries, depth)
    for query in range(queries):
        count = int(rng.integers(0, depth + 1))
        retrieved.documents[query, :count] = rng.choice(documents, count, replace=False)
        retrieved.scores[query, :count] = np.sort(rng.normal(size=count))[::-1]
    return retrieved


def test_the_union_keeps_ranks_and_scores_of_each_retriever() -> None:
    rng = np.random.default_rng(0)
    retrieved = {"a": random_retrieved(rng, 20, 6, 15), "b": random_retrieved(rng, 20, 4, 15)}
    candidates = union_candidates(retrieved)
    seen = 0
    for query in range(20):
        places: dict[int, dict[str, tuple[int, float]]] = {}
        for name, each in retrieved.items():
            for rank, document in enumerate(each.documents[query].tolist(), start=1):
                if document >= 0:
                    places.setdefault(document, {})[name] = (rank, each.scores[query, rank - 1])
        own = np.flatnonzero(candidates.queries == query)
        assert set(candidates.documents[own].tolist()) == set(places)
        for at in own.tolist():
            expected = places[int(candidates.documents[at])]
            for name in retrieved:
                if name in expected:
                    assert (candidates.ranks[name][at], candidates.scores[name][at]) == expected[name]
                else:
                    assert candidates.ranks[name][at] == -1
                    assert np.isnan(candidates.scores[name][at])
            assert candidates.best_rank[at] == min(rank for rank, _ in expected.values())
        best = candidates.best_rank[own].tolist()
        assert best == sorted(best)
        seen += len(own)
    assert seen == len(candidates)


def test_the_first_rule_that_applies_counts() -> None:
    candidate_filter = CandidateFilter(5)
    candidate_filter.drop("one", np.array([True, False, False, False, True]))
    copy = candidate_filter.copy()
    candidate_filter.drop("two", np.array([True, True, False, False, False]))
    assert candidate_filter.counts() == {"one": 2, "two": 1}
    assert candidate_filter.remaining.tolist() == [False, False, True, True, False]
    assert (copy.counts(), int(copy.remaining.sum())) == ({"one": 2}, 3)


def test_repeated_texts_and_ranks_outside_a_range() -> None:
    queries, text_ids = np.array([0, 0, 0, 1, 1]), np.array([4, 4, 2, 4, 4])
    assert repeated(queries, text_ids).tolist() == [False, True, False, False, True]
    ranks = np.array([1, 2, 9, 10], dtype=np.int32)
    assert outside_ranks(ranks, 2, 9).tolist() == [True, False, False, True]
    assert outside_ranks(ranks, 3, None).tolist() == [True, True, False, False]


def test_the_lowest_positive_of_each_query() -> None:
    positives = Lists.of([np.array([7, 8]), np.array([], dtype=np.int64), np.array([9]), np.array([1, 2])])
    scores = np.array([0.5, -0.25, np.nan, np.nan, 3.0], np.float32)
    np.testing.assert_array_equal(lowest_positive(scores, positives), np.array([-0.25, np.nan, np.nan, 3], np.float32))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("thresholds", "keeps"),
    [
        (Thresholds(max_score=0.4), lambda n, p: n <= np.float32(0.4)),
        (Thresholds(absolute_margin=0.25), lambda n, p: n < p - 0.25),
        (Thresholds(max_score_ratio=0.75), lambda n, p: n < p - abs(p) * 0.25),
        (Thresholds(max_score=0.4, max_score_ratio=0.5), lambda n, p: n <= np.float32(0.4) and n < p - abs(p) * 0.5),
    ],
)
def test_thresholds_equal_their_definitions(thresholds: Thresholds, keeps: object, sign: int) -> None:
    """In eighths, so that float32 is exact; positives below 0 included: a harder threshold never lets more through."""
    rng = np.random.default_rng(1)
    scores = (rng.integers(-8, 9, 400) / 8).astype(np.float32)
    positive = (sign * rng.integers(0, 9, 400) / 8).astype(np.float32)
    hit = np.zeros(400, dtype=bool)
    for _, each in threshold_hits(scores, positive, thresholds):
        hit |= each
    pairs = zip(scores.tolist(), positive.tolist(), strict=True)
    assert hit.tolist() == [not keeps(n, p) for n, p in pairs]  # type: ignore[operator]
    if thresholds.max_score_ratio is not None:
        assert hit[scores >= positive].all()


def test_missing_scores() -> None:
    scores, positive = np.array([np.nan, 0.5, np.nan], np.float32), np.array([0.4, np.nan, np.nan], np.float32)
    hits = dict(threshold_hits(scores, positive, Thresholds(max_score_ratio=0.9)))
    assert hits["no score of a positive to compare with"].tolist() == [False, True, True]
    assert hits["scores 90% of the positive or more"].tolist() == [False, False, False]


def test_highest_similarity_with_a_positive() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(12, 12)).astype(np.float32)
    positives = Lists.of([np.array([3, 4]), np.array([], dtype=np.int64), np.array([11])])
    documents, queries = rng.integers(0, 12, 9), np.repeat(np.arange(3), 3)
    highest = highest_similarity(documents, queries, positives, lambda one, other: table[one, other])
    for at in range(9):
        own = positives[int(queries[at])]
        assert highest[at] == max((table[documents[at], other] for other in own), default=-np.inf)


def random_lists(rng: np.random.Generator) -> tuple[Lists, np.ndarray, np.ndarray]:
    lists = Lists.of([np.arange(int(count)) for count in rng.integers(0, 12, 30)])
    scores = (rng.integers(0, 6, len(lists.values)) / 8).astype(np.float32)
    scores[rng.random(len(scores)) < 0.2] = np.nan
    return lists, scores, rng.random(len(scores)) < 0.7


@pytest.mark.parametrize("among", [None, 3, 5])
@pytest.mark.parametrize("noisy", [False, True])
def test_draws_equal_sorting_each_query(noisy: bool, among: int | None) -> None:
    rng = np.random.default_rng(3)
    lists, scores, left = random_lists(rng)
    random_keys = make_random_keys(5, lists.owners, lists.values) if noisy else None
    drawn = draw(lists, scores, left, 3, random_keys=random_keys, among=among if noisy else None)
    assert len(drawn) == len(lists)
    for query in range(len(lists)):
        own = [at for at in range(lists.offsets[query], lists.offsets[query + 1]) if left[at]]
        own.sort(key=lambda at: -scores[at] if not np.isnan(scores[at]) else np.inf)
        if random_keys is not None:
            taken = set(sorted(own[:among], key=lambda at: random_keys[at])[:3])
            own = [at for at in own if at in taken]
        assert drawn[query].tolist() == own[:3]


def test_a_random_draw_depends_on_seed_query_and_document_alone() -> None:
    queries, documents = np.array([5, 5, 9]), np.array([1, 2, 1])
    random_keys = make_random_keys(1, queries, documents)
    assert make_random_keys(1, queries[[2, 0]], documents[[2, 0]]).tolist() == random_keys[[2, 0]].tolist()
    assert len({*random_keys.tolist(), *make_random_keys(2, queries, documents).tolist()}) == 6
    spread = make_random_keys(0, np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100)) / 2.0**64
    assert abs(spread.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(spread[:-1], spread[1:])[0, 1]) < 0.05


def test_consistency_counts_higher_documents_that_are_not_positives() -> None:
    retrieved = Retrieved(
        np.array([[4, 5, 6, 7], [1, 0, -1, -1]]), np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, np.nan, np.nan]])
    )
    positives = Lists.of([np.array([5, 6, 7, 9]), np.array([1, 3])])
    scores = np.array([0.8, 0.7, 0.6, 0.95, 0.5, np.nan], np.float32)
    # Above 5, 6 and 7 stands only 4, since the others are relevant too; 9 is not in the pool, but scores above it.
    assert within_top(retrieved, positives, scores, 1).tolist() == [False, False, False, True, True, False]
    assert within_top(retrieved, positives, scores, 2).tolist() == [True, True, True, True, True, False]
    assert within_top(retrieved, positives, scores, 5).tolist() == [True, True, True, True, True, False]


def test_consistency_equals_counting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        retrieved = random_retrieved(rng, queries=6, depth=5, documents=9)
        positives = Lists.of([np.unique(rng.integers(0, 9, rng.integers(1, 4))) for _ in range(6)])
        scores = rng.choice([-0.5, 0, 0.25, 0.5, np.nan], len(positives.values)).astype(np.float32)
        for top in range(1, 8):
            expected = []
            for query, score in zip(positives.owners.tolist(), scores.tolist(), strict=True):
                found = zip(retrieved.documents[query].tolist(), retrieved.scores[query].tolist(), strict=True)
                others = [each for at, each in found if at >= 0 and at not in positives[query]]
                expected.append(score == score and sum(each > score for each in others) < top)
            assert within_top(retrieved, positives, scores, top).tolist() == expected
