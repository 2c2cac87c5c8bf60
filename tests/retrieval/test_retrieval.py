"""Exact search against enumeration, ties, precisions, ranks; BM25 and run files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from ranks import run_ranks
from torch import Tensor

from nestling.batches.prompts import TextTokenizer, Tokenized
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats
from nestling.records import load_retrieval_set
from nestling.retrieval import (
    EmbeddingPrecision,
    EncodedSet,
    bm25_run,
    encode_set,
    evaluate_embedder,
    qrels_of,
    read_run,
    relevant_ranks,
)
from nestling.retrieval.distinct import SeenTexts, find_distinct
from nestling.retrieval.first_stage import tokenize, top_with_ties
from nestling.retrieval.metrics import RelevantRanks, mean_metrics, metrics_per_query, ranks_in_run
from nestling.retrieval.search import Quantizer
from sets import random_set, write_beir, write_queries_among_documents
from tiny import tiny_bert


def make_encoded(queries: Tensor, documents: Tensor, relevant: list[list[int]], block: int) -> EncodedSet:
    """An encoded set of distinct documents, each relevant one with gain 1."""
    return EncodedSet(
        queries=queries,
        documents=documents,
        copies=torch.ones(len(documents), dtype=torch.int64),
        distinct_index=np.arange(len(documents)),
        first_document=0,
        block_size=block,
        offsets=torch.from_numpy(np.cumsum([0, *map(len, relevant)])),
        relevant=torch.tensor([document for documents in relevant for document in documents], dtype=torch.int64),
        gains=np.ones(sum(map(len, relevant))),
        own=torch.full((len(queries),), -1),
        device=torch.device("cpu"),
    )


def random_encoded(block: int) -> tuple[EncodedSet, list[list[int]]]:
    """600 queries, so that there are several blocks of queries and of relevant documents; some without any."""
    generator = torch.Generator().manual_seed(3)
    rng = np.random.default_rng(3)
    relevant = [sorted(rng.choice(70, size=rng.integers(0, 5), replace=False).tolist()) for _ in range(600)]
    queries, documents = torch.randn(600, 24, generator=generator), torch.randn(70, 24, generator=generator)
    return make_encoded(queries, documents, relevant, block), relevant


def ranks_in_matrix(scores: Tensor, relevant: list[list[int]]) -> RelevantRanks:
    """Ranks of the relevant documents from the whole score matrix, [Q, N]."""
    run = {f"q{i}": {f"d{j}": score for j, score in enumerate(own)} for i, own in enumerate(scores.tolist())}
    return ranks_in_run(run, {f"q{i}": {f"d{j}": 1.0 for j in documents} for i, documents in enumerate(relevant)})


def assert_same(ours: RelevantRanks, expected: RelevantRanks) -> None:
    assert ours.offsets.tolist() == expected.offsets.tolist()
    assert ours.above.tolist() == expected.above.tolist()
    assert ours.equal.tolist() == expected.equal.tolist()


@pytest.mark.parametrize("block", [7, 64, 70, 4096])
@pytest.mark.parametrize("dim", [24, 5])
def test_counts_equal_those_of_the_whole_score_matrix(block: int, dim: int) -> None:
    encoded, relevant = random_encoded(block)
    queries = encoded.queries[:, :dim].double()
    documents = encoded.documents[:, :dim].double()
    documents = documents / documents.norm(dim=1, keepdim=True)  # cut, then normalised again
    assert_same(relevant_ranks(encoded, dim), ranks_in_matrix(queries @ documents.T, relevant))


def test_metrics_agree_with_trec_eval() -> None:
    encoded, relevant = random_encoded(block=32)
    scores = torch.nn.functional.normalize(encoded.queries) @ torch.nn.functional.normalize(encoded.documents).T
    run = {f"q{i}": {f"d{j}": score for j, score in enumerate(own)} for i, own in enumerate(scores.tolist())}
    qrels = {
        f"q{i}": dict.fromkeys((f"d{j}" for j in documents), 1) for i, documents in enumerate(relevant) if documents
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.100"}).evaluate(run)
    ours = metrics_per_query(relevant_ranks(encoded, 24))
    for i, documents in enumerate(relevant):
        expected = theirs[f"q{i}"] if documents else {"ndcg_cut_10": 0.0, "map_cut_100": 0.0}
        assert ours["nDCG@10"][i] == pytest.approx(expected["ndcg_cut_10"], abs=1e-9)
        assert ours["MAP@100"][i] == pytest.approx(expected["map_cut_100"], abs=1e-9)


@pytest.mark.parametrize("count", [3, 65, 1000])
@pytest.mark.parametrize("embedding_precision", ["float32", "int8", "binary"])
def test_a_constant_model_ties_every_document(count: int, embedding_precision: EmbeddingPrecision) -> None:
    vector = torch.randn(1, 100)
    encoded = make_encoded(torch.randn(9, 100), vector.repeat(count, 1), [[count - 1]] * 9, block=64)
    for dim in (100, 37):
        ranks = relevant_ranks(encoded, dim, embedding_precision)
        assert ranks.above.tolist() == [0] * 9
        assert ranks.equal.tolist() == [count] * 9


def test_equal_documents_in_different_blocks_tie() -> None:
    documents = torch.randn(300, 33)
    documents[299] = documents[130] = documents[1]
    ranks = relevant_ranks(make_encoded(torch.randn(50, 33), documents, [[1, 130, 299]] * 50, block=64), 33)
    assert (ranks.equal == 3).all()


def test_binary_orders_by_hamming_distance() -> None:
    encoded, relevant = random_encoded(block=16)
    queries, documents = np.packbits(encoded.queries > 0, axis=1), np.packbits(encoded.documents > 0, axis=1)
    distance = np.bitwise_count(queries[:, None] ^ documents[None]).sum(axis=-1, dtype=np.int64)
    ours = relevant_ranks(encoded, 24, "binary")
    assert_same(ours, ranks_in_matrix(torch.from_numpy(-distance), relevant))
    assert (ours.equal > 1).mean() > 0.5  # otherwise this would not test ties


def test_int8_codes_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    encoded, relevant = random_encoded(block=16)
    vectors = torch.nn.functional.normalize(encoded.documents[:, :10]).numpy()
    ranges = np.vstack([vectors.min(axis=0), vectors.max(axis=0)])
    codes = quantize_embeddings(vectors, "int8", ranges=ranges)
    decoded = (codes.astype(np.float64) + 128) * (ranges[1] - ranges[0]) / 255 + ranges[0]
    ours = Quantizer.fit(encoded, 10, "int8").documents(encoded.documents)
    assert ours.numpy() == pytest.approx(decoded, abs=1e-6)
    scores = encoded.queries[:, :10].double() @ torch.from_numpy(decoded).T
    assert_same(relevant_ranks(encoded, 10, "int8"), ranks_in_matrix(scores, relevant))


def test_texts_equal_to_the_model_are_encoded_once_and_tie(tmp_path: Path, bert: Path) -> None:
    documents = ["alpha beta", "gamma", "alpha beta", "alpha  beta", "delta", "gamma"]
    retrieval_set = write_beir(tmp_path / "set", documents, ["alpha", "gamma?"], {"q0": {"d2": 1}, "q1": {"d5": 2}})
    encoded = encode_set(Embedder.from_pretrained(bert), retrieval_set, query_max_length=16, document_max_length=16)
    assert len(encoded.documents) == 3
    assert encoded.copies.tolist() == [3, 2, 1]
    assert encoded.relevant.tolist() == [0, 1]
    assert relevant_ranks(encoded, 48).equal.tolist() == [3, 2]


def test_evaluation_equals_encoding_and_scoring_by_hand(tmp_path: Path, qwen3: Path) -> None:
    embedder = Embedder.from_pretrained(qwen3)
    retrieval_set = random_set(tmp_path / "set", documents=40, queries=9)
    ours = evaluate_embedder(
        embedder, retrieval_set, [64, 16], query_max_length=64, document_max_length=32, instruction="find words"
    )
    queries = embedder.encode(retrieval_set.queries, kind="query", max_length=64, instruction="find words")
    documents = embedder.encode(retrieval_set.documents, kind="document", max_length=32)
    for dim in (64, 16):
        cut = torch.nn.functional.normalize(documents[:, :dim].double())
        scores = (torch.nn.functional.normalize(queries[:, :dim].double()) @ cut.T).round(decimals=6).tolist()
        ids = list(retrieval_set.document_ids)
        run = {
            query: dict(zip(ids, own, strict=True)) for query, own in zip(retrieval_set.query_ids, scores, strict=True)
        }
        expected = mean_metrics(ranks_in_run(run, qrels_of(retrieval_set)))
        assert ours[dim] == pytest.approx(expected, abs=1e-9)
    assert ours[64] != ours[16]


def test_truncated_texts_are_counted(tmp_path: Path, bert: Path) -> None:
    documents = ["alpha", "beta " * 40, "gamma " * 41]
    retrieval_set = write_beir(tmp_path / "set", documents, ["delta " * 50, "eta"], {"q0": {"d0": 1}, "q1": {"d1": 1}})
    encoded = encode_set(Embedder.from_pretrained(bert), retrieval_set, query_max_length=32, document_max_length=24)
    assert (encoded.query_stats.truncated, encoded.document_stats.truncated) == (1, 2)


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path, bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert)
    with torch.no_grad():
        next(embedder.parameters()).fill_(torch.nan)
    retrieval_set = random_set(tmp_path / "set", documents=5, queries=2)
    with pytest.raises(ValueError, match="NaN or infinity for 2 queries"):
        evaluate_embedder(embedder, retrieval_set, [48], query_max_length=16, document_max_length=16)


def counts(stats: EncodingStats) -> list[int]:
    return [stats.texts, stats.truncated]


def evaluate_sets(model: Path, folders: list[Path]) -> list[dict[str, Any]]:
    """For each set the counts of texts and, for each precision, the ranks of the relevant documents."""
    embedder = Embedder.from_pretrained(model)
    results = []
    for folder in folders:
        encoded = encode_set(embedder, load_retrieval_set(folder, "test"), query_max_length=16, document_max_length=8)
        result = {"counts": [counts(encoded.query_stats), counts(encoded.document_stats)]}
        for embedding_precision in ("float32", "int8", "binary"):
            ranks = relevant_ranks(encoded, 24, embedding_precision)
            result[embedding_precision] = [*ranks.above.tolist(), *ranks.equal.tolist()]
        results.append(result)
    return results


SETS = ("uneven", "one document", "one query", "equal texts", "queries among documents")


def run_rank(rank: int, folder: Path) -> None:
    (folder / f"{rank}.json").write_text(json.dumps(evaluate_sets(folder / "bert", [folder / name for name in SETS])))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_also_where_a_rank_has_nothing(tmp_path: Path, world: int) -> None:
    folders = [tmp_path / name for name in SETS]
    random_set(folders[0], documents=41, queries=13)
    random_set(folders[1], documents=1, queries=3)
    random_set(folders[2], documents=4, queries=1)
    documents = [*["alpha beta", "gamma"] * 4, "delta", "alpha  beta"]
    write_beir(folders[3], documents, ["alpha", "gamma?"], {"q0": {"d9": 1, "d8": 1}, "q1": {"d5": 2}})
    write_queries_among_documents(folders[4])
    alone = evaluate_sets(tiny_bert(tmp_path / "bert"), folders)
    assert alone[3]["float32"][3:] == [5, 1, 4]  # equal to d9, d8 and d5
    run_ranks(world, run_rank, tmp_path)
    for rank in range(world):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_texts_are_new_once_over_all_windows() -> None:
    seen = SeenTexts()
    assert seen.select_new([[1, 2], [3], [1, 2]]) == [[1, 2], [3]]
    assert seen.select_new([[3], [12], [2, 1]]) == [[12], [2, 1]]
    first, third, _, fourth, *_ = seen.hashes.tolist()
    assert (len(seen.hashes), len(set(seen.hashes.tolist()))) == (6, 4)
    assert third == fourth != first


def test_distinct_texts_of_two_ranks_by_hand() -> None:
    # rank 0 reads 7, 5, 7 and rank 1 reads 5, 3, 5
    distinct = find_distinct(np.array([7, 5, 5, 3, 7, 5]), world=2)
    assert distinct.bounds.tolist() == [0, 2, 4]  # 7, 5 | 5, 3
    assert distinct.copies.tolist() == [2, 3, 0, 1]
    assert distinct.encoded_index.tolist() == [0, 1, 1, 3, 0, 1]


def test_every_text_is_tokenised_once(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrieval_set = random_set(tmp_path / "set", documents=23, queries=5)
    embedder = Embedder.from_pretrained(bert)
    read: list[str] = []
    tokenize = TextTokenizer.__call__

    def watched(self: TextTokenizer, texts: list[str], max_length: int) -> Tokenized:
        read.extend(texts)
        return tokenize(self, texts, max_length)

    monkeypatch.setattr(TextTokenizer, "__call__", watched)
    monkeypatch.setattr("nestling.models.encoding.WINDOW", 10)
    encoded = encode_set(embedder, retrieval_set, query_max_length=16, document_max_length=16)
    assert read == [*retrieval_set.queries, *retrieval_set.documents]
    assert encoded.document_stats.encoded == len(set(retrieval_set.documents)) == len(encoded.documents)


def test_bm25_terms() -> None:
    assert tokenize("The files are RUNNING in /tmp/x_1") == ["file", "run", "tmp", "x_1"]
    assert tokenize("臺北市2006年x") == ["臺北", "北市", "2006", "年", "x"]
    assert tokenize("ข้าว") == ["ข้", "้า", "าว"]
    assert tokenize("... !") == []


def test_bm25_score_by_hand(tmp_path: Path) -> None:
    documents = ["alpha alpha beta", "alpha gamma", "delta", "the"]
    retrieval_set = write_beir(tmp_path / "set", documents, ["alpha", "omega"], {"q0": {"d0": 1}, "q1": {"d2": 1}})
    run = bm25_run(retrieval_set)
    idf = np.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    mean_length = (3 + 2 + 1 + 0) / 4
    lengths = {"d0": (2, 3), "d1": (1, 2)}
    expected = {
        document: idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * length / mean_length))
        for document, (count, length) in lengths.items()
    }
    assert run["q0"] == pytest.approx(expected, rel=1e-5)
    assert run["q1"] == {}


def test_bm25_without_any_term(tmp_path: Path) -> None:
    retrieval_set = write_beir(tmp_path / "set", ["the", "..."], ["of"], {"q0": {"d0": 1}})
    assert bm25_run(retrieval_set) == {"q0": {}}


def test_lists_keep_all_documents_that_tie_with_the_last() -> None:
    scores = np.array([3, 1, 2, 2, 0, 2, 1], dtype=np.float32)
    assert top_with_ties(scores, 2).tolist() == [0, 2, 3, 5]
    assert top_with_ties(scores, 5).tolist() == [0, 1, 2, 3, 5, 6]
    assert top_with_ties(scores, 100).tolist() == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cranfield", 0.342),
        ("banking77", 0.604),
        pytest.param("nl2bash", 0.367, marks=pytest.mark.slow),
        pytest.param("drcd", 0.954, marks=pytest.mark.slow),
    ],
)
def test_bm25_on_real_data(shared_data: Path, name: str, expected: float) -> None:
    retrieval_set = load_retrieval_set(shared_data / name, "test")
    values = mean_metrics(ranks_in_run(bm25_run(retrieval_set), qrels_of(retrieval_set)))
    assert values["nDCG@10"] == pytest.approx(expected, abs=0.001)


@pytest.mark.slow
def test_minilm_on_real_data(shared_data: Path, minilm: Path) -> None:
    retrieval_set = load_retrieval_set(shared_data / "cranfield", "test")
    embedder = Embedder.from_pretrained(minilm)
    values = evaluate_embedder(embedder, retrieval_set, [384], query_max_length=256, document_max_length=256)
    assert values[384]["nDCG@10"] == pytest.approx(0.374, abs=0.002)


def test_run_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 d1 1 2.5 tag\nq1\tQ0\td2\t2\t-1e3\ttag\n\nq2 Q0 d1 1 0 tag\n", encoding="utf-8")
    assert read_run(path) == {"q1": {"d1": 2.5, "d2": -1000.0}, "q2": {"d1": 0.0}}


def test_longer_lines_of_run_files_are_read(tmp_path: Path) -> None:
    """As trec_eval reads them: a tag with blanks, columns behind it; with tabs, ids may have blanks too."""
    path = tmp_path / "run.trec"
    lines = ["q1 Q0 d1 1 2.5 my best run", "q1  Q0 d2\t2  1.5 tag 17 x", "q 2\tQ0\td 1\t1\t0.5\tmy run\tmore"]
    path.write_text("\r\n".join(lines))
    assert read_run(path) == {"q1": {"d1": 2.5, "d2": 1.5}, "q 2": {"d 1": 0.5}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"q1 Q0 d1 1 2.5\n", ":1: 5 columns, expected 6 or more: query Q0 document rank score tag"),
        (b"q1\tQ0\td1\t1\t2.5\n", ":1: 5 columns, expected 6 or more"),
        (b"q1 Q0 my doc 1 2.5 t\n", ":1: rank: 'doc' is not a finite number; expected lines of: query Q0"),
        (b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 nan t\n", ":2: score: 'nan' is not a finite number"),
        (b"q1 Q0 d1 1 high t\n", ":1: score: 'high'"),
        (b"q1 Q0 d1 1 2 t\nq1 Q0 d1 2 1 t\n", ":2: document: d1 is listed twice for query q1"),
        (b"q1 Q0 d1 1 2 t\nq1 Q0 d\xff 2 1 t\n", ":2: line: invalid UTF-8"),
    ],
)
def test_broken_run_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.trec"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.trec") as caught:
        read_run(path)
    assert message in str(caught.value)
