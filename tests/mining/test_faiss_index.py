"""FAISS indexes: equal to exact search if exhaustive; otherwise exact scores, and a measured recall."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

from mining.small import coarse, make_vectors, reference, unit
from nestling.mining.nearest import nearest
from nestling.mining.retrieved import Retrieved

faiss = pytest.importorskip("faiss", reason="the faiss extra is not installed")

import nestling.mining.faiss_index  # noqa: E402 - needs faiss
from nestling.mining.faiss_index import FaissIndex, recall, training_sample  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "index",
    [FaissIndex("Flat"), FaissIndex("IVF8,Flat", "nprobe=8"), FaissIndex("IVF8_HNSW8,Flat", "nprobe=8")],
    ids=str,
)
@pytest.mark.parametrize("shard_size", [7, 100, 1000])
@pytest.mark.parametrize("depth", [1, 5, 40, 400])
def test_an_exhaustive_index_equals_exact_search(
    monkeypatch: pytest.MonkeyPatch, index: FaissIndex, shard_size: int, depth: int
) -> None:
    """Ties included."""
    monkeypatch.setattr(nestling.mining.faiss_index, "QUERY_BLOCK", 11)
    rng = np.random.default_rng(depth)
    queries, documents = coarse(rng, 30), coarse(rng, 300)
    retrieved = index(make_vectors(queries, 8), make_vectors(documents, shard_size), 250, depth, CPU)
    expected = reference(queries, documents[:250], depth)
    assert retrieved.documents.tolist() == expected.documents.tolist()
    assert np.array_equal(retrieved.scores, expected.scores, equal_nan=True)
    assert (retrieved.documents.dtype, retrieved.scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW8", "IVF4,SQ4", "OPQ4_16,IVF4,PQ4x4", "PCA8,SQ8"])
def test_retrieved_documents_have_the_scores_and_order_of_their_embeddings(factory: str) -> None:
    rng = np.random.default_rng(0)
    queries, documents = unit(rng, 40, 32), unit(rng, 900, 32)
    pair = make_vectors(queries, 32), make_vectors(documents, 64)
    retrieved = FaissIndex(factory)(*pair, 850, 20, CPU)
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    here = retrieved.documents >= 0
    assert retrieved.documents.max() < 850
    assert np.array_equal(np.isnan(retrieved.scores), ~here)
    np.testing.assert_allclose(
        retrieved.scores[here], np.take_along_axis(scores, retrieved.documents, 1)[here], atol=1e-6, rtol=0
    )
    for positions, own in zip(retrieved.documents, retrieved.scores, strict=True):
        assert len(set(positions[positions >= 0].tolist())) == (positions >= 0).sum()
        assert np.all(np.diff(own[positions >= 0]) <= 0)
    share = recall(retrieved, *pair, 850, CPU)
    exact = reference(queries, documents[:850], 20).documents
    assert (
        share == sum(len({*one} & {*other}) for one, other in zip(exact, retrieved.documents, strict=True)) / exact.size
    )
    assert 0.2 < share < 1


def test_oversampling_raises_the_recall_of_compressed_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pair = make_vectors(unit(rng, 40, 32), 32), make_vectors(unit(rng, 900, 32), 64)
    more = recall(FaissIndex("PQ8x4")(*pair, 900, 20, CPU), *pair, 900, CPU)
    monkeypatch.setattr(nestling.mining.faiss_index, "OVERSAMPLING", 1)
    assert more > recall(FaissIndex("PQ8x4")(*pair, 900, 20, CPU), *pair, 900, CPU) + 0.1


def test_recall_is_relative_to_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    queries, documents = make_vectors(unit(rng, 50, 16), 8), make_vectors(unit(rng, 6, 16), 8)
    retrieved = nearest(queries, documents, 6, 9, CPU)
    assert recall(retrieved, queries, documents, 6, CPU) == 1  # the places of documents that do not exist count nowhere
    missing = Retrieved(np.where(retrieved.documents < 2, -1, retrieved.documents), retrieved.scores)
    assert recall(missing, queries, documents, 6, CPU) == pytest.approx(4 / 6)
    monkeypatch.setattr(nestling.mining.faiss_index, "RECALL_QUERIES", 7)
    assert recall(missing, queries, documents, 6, CPU) == pytest.approx(4 / 6)


def test_size_of_the_training_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nestling.mining.faiss_index, "MIN_SAMPLE", 10)
    monkeypatch.setattr(nestling.mining.faiss_index, "SAMPLE_PER_LIST", 5)
    for factory, size, expected in [("PQ4", 1000, 10), ("IVF4,Flat", 1000, 20), ("OPQ4,IVF4,PQ4", 13, 13)]:
        sample = training_sample(FaissIndex(factory).empty(16), size)
        assert sample.tolist() == sorted(set(sample.tolist()))
        assert (len(sample), sample[0] >= 0, sample[-1] < size) == (expected, True, True)


def test_default_and_given_nprobe() -> None:
    lists = faiss.extract_index_ivf
    assert lists(FaissIndex("OPQ4,IVF100,PQ4").empty(16)).nprobe == 10
    assert lists(FaissIndex("OPQ4,IVF100,PQ4", "nprobe=3").empty(16)).nprobe == 3


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (FaissIndex("IVF4;Flat"), r"FAISS refuses IVF4;Flat: could not parse index string"),
        (FaissIndex("PQ5"), r"refuses PQ5: .* \(d\) should be a multiple of the number of subquantizers"),
        (FaissIndex("Flat", "nprobe=3"), r"refuses Flat with nprobe=3: .*could not set parameter nprobe"),
        (
            FaissIndex("IVF64,Flat"),
            r"Number of training points \(50\) should be at least as large as number of clusters",
        ),
        (FaissIndex("IDMap,Flat"), r"add does not make sense with IndexIDMap"),
    ],
    ids=str,
)
def test_errors_of_faiss_name_the_index(index: FaissIndex, message: str) -> None:
    vectors = make_vectors(unit(np.random.default_rng(0), 50, 16), 20)
    with pytest.raises(ValueError, match=rf"^index: .*{message}"):
        index(vectors, vectors, 50, 3, CPU)


# Heights of shards, of which some ranks may have none, and indexes: those with the embeddings themselves, and others.
EXACT_CODES = [(25, "Flat"), (60, "IVF9,Flat"), (25, "IVF9,Flat")]
OTHERS = [(60, "HNSW8"), (60, "IVF4,SQ4"), (60, "PQ4x4")]


def search_as_rank(rank: int, folder: Path) -> None:
    rng = np.random.default_rng(7)
    queries, documents = unit(rng, 20, 32), unit(rng, 110, 32)
    retrieved = [
        FaissIndex(factory)(make_vectors(queries, 8), make_vectors(documents, shard_size), 90, 12, CPU)
        for shard_size, factory in [*EXACT_CODES, *OTHERS]
    ]
    (folder / f"{rank}.json").write_text(
        json.dumps([[each.documents.tolist(), str(each.scores)] for each in retrieved])
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_a_single_process(tmp_path: Path, world: int) -> None:
    """With other codes, or graphs of their own, they may find more, but all of them the same."""
    search_as_rank(world, tmp_path)
    run_ranks(world, search_as_rank, tmp_path)
    alone = json.loads((tmp_path / f"{world}.json").read_text())
    together = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    assert all(each == together[0] for each in together)
    exact = len(EXACT_CODES)
    assert together[0][:exact] == alone[:exact]
