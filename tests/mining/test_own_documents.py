"""Mining from BEIR folders whose queries are documents too."""

from pathlib import Path

import numpy as np
import torch

from mining.small import opened, write_rows
from nestling.config.embed import RefreshConfig
from nestling.mining.lists import Lists
from nestling.mining.own_documents import own_documents, own_documents_line, search_others
from nestling.mining.refresh_dataset import RefreshDataset, mine_again
from nestling.mining.retrieved import Retrieved
from nestling.mining.retrievers import Bm25Retriever, DenseRetriever
from nestling.models.embedder import Embedder
from nestling.records import load_records
from sets import write_queries_among_documents

CPU = torch.device("cpu")


def test_documents_with_the_id_of_a_query_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "arguments"
    data = write_queries_among_documents(folder)
    table = load_records(folder, split="test", progress=False)
    rows = [{"query": table[i].query, "positives": table[i].positives} for i in range(len(table))]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows), folder)
    own = own_documents(folder, query_set, pool)
    # t2 and t3 have the same text, as queries and as documents, and t3 is a positive of it; t5 is its own positive.
    texts = {query_set.texts[i]: [pool.texts[each] for each in own[i].tolist()] for i in range(len(own))}
    assert texts == {
        **{query: [f"On {query}"] for query in (data.queries[0], data.queries[1], data.queries[4])},
        **{data.queries[2]: [], data.queries[5]: [], data.queries[6]: []},
    }
    assert own_documents_line(own) == "3 queries have the id of a document, which is no candidate of theirs"

    bm25 = Bm25Retriever(query_set, pool, CPU)
    before, after = bm25.search(11), search_others(bm25, 4, own)
    for query, documents in enumerate(before.documents.tolist()):
        others = [each for each in documents if each not in own[query].tolist()][:4]
        assert after.documents[query].tolist() == others
        scores = dict(zip(documents, before.scores[query].tolist(), strict=True))
        assert after.scores[query].tolist() == [scores[each] for each in others]
    assert sum(len(set(own[i].tolist()) & set(before.documents[i, :4].tolist())) for i in range(len(own))) == 3


def test_other_data_has_none(tmp_path: Path) -> None:
    write_queries_among_documents(tmp_path / "arguments")
    rows = write_rows(tmp_path / "rows.jsonl", [{"query": "alpha", "positives": ["beta"]}])
    _, query_set, pool = opened(rows, tmp_path / "arguments")
    assert own_documents(rows, query_set, pool).counts.tolist() == [0]
    retrieved = Retrieved(np.array([[2, 1, 0]]), np.array([[3, 2, 1]], np.float32))
    assert retrieved.without(Lists.of([np.zeros(0, np.int64)]), 3) is retrieved


def test_refreshed_negatives_are_other_documents(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "arguments"
    write_queries_among_documents(folder)
    table = load_records(folder, split="test", progress=False)
    dataset = RefreshDataset.open(table, str(folder), None, progress=False)
    assert dataset is not None
    embedder = Embedder.from_pretrained(bert)
    retriever = DenseRetriever.encode(
        "bert", embedder, dataset.query_set, dataset.pool, query_max_length=16, document_max_length=16
    )
    rules = RefreshConfig(steps=1, depth=50, max_score_ratio=1.0)
    result = mine_again(dataset, retriever, rules, negatives=50, seed=0)
    assert len(dataset.own.values) == 3
    assert not dataset.own.holds(result.candidates.queries, result.candidates.documents).any()
    assert len(result.candidates) == len(dataset.pool) * len(dataset.query_set) - 3
