"""Exact search against a float64 reference for several block sizes, with ties, and on several ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

import nestling.mining.nearest
from mining.small import coarse, make_vectors, reference, unit
from nestling.mining.nearest import nearest

CPU = torch.device("cpu")


@pytest.mark.parametrize(("shard_size", "group"), [(7, 32), (64, 4), (100, 32), (300, 8), (1000, 32)])
@pytest.mark.parametrize("depth", [1, 5, 40, 400])
def test_equal_to_sorting_all_scores(monkeypatch: pytest.MonkeyPatch, shard_size: int, group: int, depth: int) -> None:
    monkeypatch.setattr(nestling.mining.nearest, "QUERY_BLOCK", 11)
    monkeypatch.setattr(nestling.mining.nearest, "GROUP", group)
    rng = np.random.default_rng(depth)
    queries, documents = coarse(rng, 30), coarse(rng, 300)
    retrieved = nearest(make_vectors(queries, 8), make_vectors(documents, shard_size), 250, depth, CPU)
    expected = reference(queries, documents[:250], depth)
    assert retrieved.documents.tolist() == expected.documents.tolist()
    assert np.array_equal(retrieved.scores, expected.scores, equal_nan=True)
    assert (retrieved.documents.dtype, retrieved.scores.dtype) == (np.int64, np.float32)


def test_scores_and_order_equal_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.mining.nearest, "QUERY_BLOCK", 16)
    rng = np.random.default_rng(0)
    queries, documents = unit(rng, 40), unit(rng, 500)
    retrieved = nearest(make_vectors(queries, 32), make_vectors(documents, 64), 500, 20, CPU)
    expected = reference(queries, documents, 20)
    np.testing.assert_allclose(retrieved.scores, expected.scores, atol=1e-6, rtol=0)
    far_apart = np.diff(expected.scores, axis=1, append=-1) < -1e-6
    far_apart[:, 1:] &= far_apart[:, :-1]
    assert far_apart.mean() > 0.9
    assert np.array_equal(retrieved.documents[far_apart], expected.documents[far_apart])


def search_as_rank(rank: int, folder: Path) -> None:
    rng = np.random.default_rng(7)
    queries, documents = unit(rng, 20), unit(rng, 90)
    retrieved = nearest(make_vectors(queries, 8), make_vectors(documents, 25), 90, 12, CPU)
    (folder / f"{rank}.json").write_text(json.dumps([retrieved.documents.tolist(), retrieved.scores.tolist()]))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_a_single_process(tmp_path: Path, world: int) -> None:
    search_as_rank(world, tmp_path)
    run_ranks(world, search_as_rank, tmp_path)
    alone = json.loads((tmp_path / f"{world}.json").read_text())
    assert all(json.loads((tmp_path / f"{rank}.json").read_text()) == alone for rank in range(world))
