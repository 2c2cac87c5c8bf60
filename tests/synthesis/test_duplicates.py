from pathlib import Path

import numpy as np
import pytest
import torch

from mining.small import make_vectors
from nestling.models.embedder import Embedder
from nestling.synthesis import duplicates, near_queries
from nestling.synthesis.conversation import ConversationResult
from nestling.synthesis.duplicates import MEANS_OTHER, MEANS_OWN, MERGED, REPEATED, Similarity, find_duplicates
from nestling.synthesis.near_queries import earlier_neighbours
from synthesis.small import small_task

CPU = torch.device("cpu")


def made(query: str | None, grade: int | None = None) -> ConversationResult:
    judged = None if grade is None else (query or "", {"answerable": grade, "natural": 5})
    return ConversationResult(query, None, None if query else "empty query", (), judged)


def greedy(vectors: np.ndarray, threshold: float) -> list[int]:
    """The nearest earlier remaining one of each text, by a loop in float64."""
    found: list[int] = []
    for row, vector in enumerate(vectors.astype(np.float16).astype(np.float64)):
        scores = [float(vector @ vectors[at].astype(np.float16)) if found[at] < 0 else -1.0 for at in range(row)]
        found.append(int(np.argmax(scores)) if scores and max(scores) >= threshold else -1)
    return found


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_earlier_neighbours_equal_those_of_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_queries, "BLOCK", block)
    values = np.random.default_rng(3).normal(size=(150, 4)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found, cosines = earlier_neighbours(make_vectors(values, 32), 0.9, CPU)
    assert found.tolist() == greedy(values, 0.9)
    dropped = found >= 0
    assert 30 < dropped.sum() < 140 and not dropped[found[dropped]].any()
    assert np.isnan(cosines[~dropped]).all()
    assert np.allclose(cosines[dropped], (values[dropped] * values[found[dropped]]).sum(axis=1), atol=2e-3)


def test_equal_queries_are_one_of_their_document_and_one_row_of_several(tmp_path: Path) -> None:
    """Queries 0 and 1 are of the first document, 2 and 3 of the second, 4 and 5 of the third."""
    task = small_task(tmp_path, {"a": "first text", "b": "second text", "c": "third text"}, num_queries=2)
    results = list(
        enumerate(
            [made("why fly?", 3), made("Why fly", 4), made("WHY fly!", 4), made(None), made("why swim"), made("x")]
        )
    )
    found = find_duplicates(task, results, None)
    assert found.failures == {0: REPEATED, 2: MERGED} and found.merged == {1: [2]} and found.examples == []
    kept = dict(found.applied(results))
    assert [kept[at].query for at in range(6)] == [None, "Why fly", None, None, "why swim", "x"]
    assert kept[0].failure == REPEATED and kept[3].failure == "empty query"
    assert kept[0].judged == results[0][1].judged
    positives = task.row(kept[1], task.positives(1, found.merged[1]), None)["positives"]
    assert positives == [task.passages.texts[0], task.passages.texts[1]]


def test_of_queries_that_mean_the_same_the_best_graded_remains(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    angles = {"sum of birds": 0, "birds in all": 10, "number of birds": 17, "of owls": 60, "owls?": 62, "the sea": 180}
    grades = [4, 5, 3, 4, 4, 1]

    def embed(embedder: object, texts: list[str], ids: object, **more: object) -> object:
        assert more["kind"] == "query" and len(set(texts)) == len(texts)
        radians = np.radians([angles[text] for text in texts])
        return make_vectors(np.stack([np.cos(radians), np.sin(radians)], axis=1), 4)

    monkeypatch.setattr(duplicates, "embed", embed)
    task = small_task(tmp_path, {"a": "first text", "b": "second text", "c": "third text"}, num_queries=2)
    queries = [made(text, grade) for text, grade in zip(angles, grades, strict=True)]
    similarity = Similarity(Embedder.from_pretrained(str(bert)), 0.97)  # 14 degrees
    found = find_duplicates(task, enumerate(queries), similarity)
    assert found.failures == {0: MEANS_OWN, 2: MEANS_OTHER, 4: MEANS_OTHER}
    assert found.merged == {}
    assert found.examples == [
        "  0.985: 'sum of birds' dropped for 'birds in all'",
        "  0.993: 'number of birds' dropped for 'birds in all'",
        "  0.999: 'owls?' dropped for 'of owls'",
    ]


def test_what_equals_a_query_that_is_dropped_is_dropped_too(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "embed", lambda *arguments, **more: make_vectors(np.ones((2, 1)), 2))
    task = small_task(tmp_path, {"a": "first text", "b": "second text", "c": "third text"})
    queries = [made("owls", 5), made("an owl", 4), made("An Owl", 4)]
    found = find_duplicates(task, enumerate(queries), Similarity(Embedder.from_pretrained(str(bert)), 0.9))
    assert found.failures == {1: MEANS_OTHER, 2: MEANS_OTHER} and found.merged == {}
