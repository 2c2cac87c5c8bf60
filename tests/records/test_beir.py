"""BEIR folders as retrieval sets and as training rows."""

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nestling.records import Record, load_records, load_retrieval_set
from nestling.records.summary import Drop
from nestling.records.texts import Texts

CORPUS: tuple[dict[str, str], ...] = (
    {"_id": "d1", "title": "Water", "text": "boils"},
    {"_id": "d2", "title": "", "text": " freezes "},
    {"_id": "d3", "text": "sky"},
    {"_id": "d4", "title": "Only a title", "text": ""},
)
QUERIES = ({"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "three"})
QRELS = ("q3\td1\t0", "q1\td4\t2", "q1\td2\t0", "q1\td1\t1", "q3\td3\t-1")


def folder(
    tmp_path: Path, corpus: Sequence[object] = CORPUS, queries: Sequence[object] = QUERIES, qrels: Sequence[str] = QRELS
) -> Path:
    """A BEIR folder; rows are objects, or raw lines."""
    path = tmp_path / "set"
    (path / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    return path


def test_retrieval_set(tmp_path: Path) -> None:
    found = load_retrieval_set(folder(tmp_path), "test", cache_dir=tmp_path / "cache")
    assert found.name == "set/test"
    assert list(found.document_ids) == ["d1", "d2", "d3", "d4"]
    assert list(found.documents) == ["Water boils", "freezes", "sky", "Only a title"]
    assert (list(found.query_ids), list(found.queries)) == (["q1", "q3"], ["one", "three"])
    assert [rows.tolist() for rows in found.relevant] == [[3, 0], []]
    assert [gains.tolist() for gains in found.gains] == [[2.0, 1.0], []]
    assert (found.relevant[1].dtype, found.gains[1].dtype) == (np.int64, np.float64)
    assert (found.summary.positives, found.summary.negatives, found.summary.max_negatives) == (2, 3, 2)


def test_training_rows(tmp_path: Path) -> None:
    table = load_records(folder(tmp_path, qrels=[*QRELS, "q2\td2\t1"]), split="test", cache_dir=tmp_path / "cache")
    assert [table[i] for i in range(len(table))] == [
        Record("one", ("Only a title", "Water boils"), ("freezes",)),
        Record("two", ("freezes",)),
    ]
    (drop,) = table.summary.drops
    assert (drop.reason, drop.count) == ("row without a positive that differs from its query", 1)
    assert drop.example.endswith("set/qrels/test.tsv:2")
    assert (table.name, table.summary.dialect, table.summary.rows_read) == ("set", "BEIR", 3)


def test_training_rows_of_negatives_only(tmp_path: Path) -> None:
    table = load_records(folder(tmp_path), split="test", cache_dir=tmp_path / "cache", allow_no_positives=True)
    rows = [table[i] for i in range(len(table))]
    assert rows == [
        Record("one", ("Only a title", "Water boils"), ("freezes",)),
        Record("three", (), ("Water boils", "sky")),
    ]
    assert not table.summary.drops
    assert table.summary.rows_without_positives == 1


def test_empty_documents_and_repeated_judgements_are_counted(tmp_path: Path) -> None:
    corpus = [{"_id": "e1", "title": "", "text": " "}, *CORPUS[:2], {"_id": "e2", "text": ""}, *CORPUS[2:]]
    path = folder(tmp_path, corpus=corpus, qrels=[*QRELS, "q1\td4\t2"])
    found = load_retrieval_set(path, "test", cache_dir=tmp_path / "cache")
    assert list(found.documents) == ["Water boils", "freezes", "sky", "Only a title"]
    assert [rows.tolist() for rows in found.relevant] == [[3, 0], []]
    assert found.summary.drops == (
        Drop("document with neither title nor text", 2, f"{path}/corpus.jsonl:1"),
        Drop("judgement repeated", 1, f"{path}/qrels/test.tsv:7"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": [*CORPUS, "", CORPUS[1]]}, "corpus.jsonl:6: _id: used twice, first in line 2"),
        ({"queries": [*QUERIES, QUERIES[0]]}, "queries.jsonl:4: _id: used twice, first in line 1"),
        ({"corpus": []}, "corpus.jsonl:1: file: holds no rows"),
        ({"corpus": [{"id": "d1", "text": "x"}]}, "corpus.jsonl:1: _id: missing"),
        ({"corpus": [{"_id": "d1", "title": "x", "text": 3}]}, "corpus.jsonl:1: text: expected a text, got int 3"),
        ({"corpus": [{"_id": "d1"}]}, "corpus.jsonl:1: text: missing"),
        ({"corpus": ['{"_id": "d1", "text": "\\ud800"}']}, "corpus.jsonl:1: text: half of a surrogate pair"),
        ({"corpus": ['{"_id": "\\ud800", "text": "x"}']}, "corpus.jsonl:1: _id: half of a surrogate pair"),
        ({"queries": [{"_id": "q1", "text": ""}]}, "queries.jsonl:1: text: the text is empty"),
        (
            {"qrels": ["q1\td1\t1", "q9\td1\t1", "q8\td1\t1"]},
            "qrels/test.tsv:3: query-id: not in queries.jsonl, like 2 of",
        ),
        ({"qrels": ["q1\td1\t1", "q1\td9\t1"]}, "qrels/test.tsv:3: corpus-id: not in corpus.jsonl, like 1 of 2"),
        ({"qrels": []}, "qrels/test.tsv:1: file: holds no judgements"),
        ({"qrels": ["q1\td1"]}, "qrels/test.tsv:2: line: 2 cells; expected query-id TAB corpus-id TAB score"),
        ({"qrels": ["q1\td1\t1\tx\ty"]}, "qrels/test.tsv:2: line: 5 cells; expected query-id TAB corpus-id TAB score"),
        ({"qrels": ["q1 0 d1 1"]}, "qrels/test.tsv:2: line: 4 cells, where the first line has 3; expected the same in"),
        ({"qrels": ["q1\td1\thigh"]}, "qrels/test.tsv:2: score: expected a finite number, got 'high'"),
        ({"qrels": ["q1\td1\tnan"]}, "qrels/test.tsv:2: score: expected a finite number, got 'nan'"),
        ({"qrels": ["q1\td1\t1", "q1\td1\t2"]}, "qrels/test.tsv:3: score: 2, but 1 in line 2"),
        (
            {"corpus": [*CORPUS, {"_id": "e", "text": ""}], "qrels": ["q1\te\t1"]},
            "qrels/test.tsv:2: corpus-id: the document (corpus.jsonl:5) has neither title nor text",
        ),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, list[object]], message: str) -> None:
    path = folder(tmp_path, **change)  # type: ignore[arg-type]
    for load in (load_retrieval_set, load_records):
        with pytest.raises(ValueError, match=re.escape(f"{path}/{message}")):
            load(path, split="test", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "lines",
    [
        ["q3\td1\t0", "q1\td4\t2", "q1\td2\t0", "q1\td1\t1", "q3\td3\t-1"],
        ["q3 0 d1 0", "q1 0 d4 2", "q1 Q0  d2 0 ", "", "q1 0 d1 1", "q3 0 d3 -1"],
        ["q3\t0\td1\t0", "q1\t0\td4\t2", "q1\t0\td2\t0", "q1\t0\td1\t1", "q3\t0\td3\t-1"],
    ],
)
def test_judgements_without_a_header_in_three_or_four_columns(tmp_path: Path, lines: list[str]) -> None:
    path = folder(tmp_path)
    (path / "qrels" / "trec.tsv").write_text("\n".join(lines))
    expected, found = (load_retrieval_set(path, split, cache_dir=tmp_path / "cache") for split in ("test", "trec"))
    assert list(found.query_ids) == list(expected.query_ids)
    for name in ("relevant", "gains"):
        assert [rows.tolist() for rows in getattr(found, name)] == [rows.tolist() for rows in getattr(expected, name)]
    rows, trained = (load_records(path, split=split, cache_dir=tmp_path / "cache") for split in ("test", "trec"))
    assert [trained[i] for i in range(len(trained))] == [rows[i] for i in range(len(rows))]
    with (path / "qrels" / "trec.tsv").open("a") as file:
        file.write("\nq1 d1 1")
    if len(lines[0].split()) == 4:
        with pytest.raises(ValueError, match=rf"trec\.tsv:{len(lines) + 1}: line: 3 cells, where the first line has 4"):
            load_records(path, split="trec", cache_dir=tmp_path / "cache")


def test_no_relevant_document(tmp_path: Path) -> None:
    path = folder(tmp_path, qrels=["q1\td1\t0", "q2\td2\t-1"])
    with pytest.raises(ValueError, match=r"test\.tsv:2: score: no judgement is above 0, so there is nothing to find"):
        load_retrieval_set(path, "test", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"test\.tsv:1: file: no row can be kept"):
        load_records(path, split="test", cache_dir=tmp_path / "cache")


def test_missing_parts(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for load in (load_retrieval_set, load_records):
        with pytest.raises(ValueError, match=r"train\.tsv: split: there is no 'train'; available: test"):
            load(path, split="train", cache_dir=tmp_path / "cache")
    (path / "qrels" / "test.tsv").write_text("query\tdocument\tgrade\nq1\td1\t1\n")
    with pytest.raises(
        ValueError, match=r"test\.tsv:1: header: expected query-id TAB corpus-id TAB score \(BEIR\), or"
    ):
        load_retrieval_set(path, "test", cache_dir=tmp_path / "cache")
    (path / "corpus.jsonl").unlink()
    for load in (load_retrieval_set, load_records):
        with pytest.raises(ValueError, match=r"corpus\.jsonl: file: missing; a BEIR folder holds"):
            load(path, split="test", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="folder: there is no such folder"):
        load_retrieval_set(tmp_path / "nowhere", "test", cache_dir=tmp_path / "cache")


def test_ids_that_are_numbers(tmp_path: Path) -> None:
    path = folder(tmp_path, [{"_id": 7, "text": "x"}], [{"_id": 1, "text": "one"}], ["1\t7\t1"])
    assert list(load_retrieval_set(path, "test", cache_dir=tmp_path / "cache").document_ids) == ["7"]


def test_texts_index_like_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.records.collection.ROWS_PER_BATCH", 3)
    monkeypatch.setattr("nestling.records.texts.TEXTS_PER_BLOCK", 4)
    corpus = [{"_id": f"d{i}", "text": f"text {i}"} for i in range(10)]
    documents = load_retrieval_set(
        folder(tmp_path, corpus, qrels=["q1\td1\t1"]), "test", cache_dir=tmp_path / "cache"
    ).documents
    plain = [f"text {i}" for i in range(10)]
    assert isinstance(documents, Texts)
    some = Texts(documents._path, "text", np.array([9, 0, 4]))
    assert (len(documents), list(documents), documents[3], documents[-1]) == (10, plain, plain[3], plain[-1])
    assert (documents[2:9:3], documents[::-1], documents[4:4]) == (plain[2:9:3], plain[::-1], [])
    assert documents[[9, 0, 0, -1]] == documents[np.array([9, 0, 0, -1])] == ["text 9", "text 0", "text 0", "text 9"]
    assert (list(some), some[1:], some[-1]) == (["text 9", "text 0", "text 4"], ["text 0", "text 4"], "text 4")
    assert list(pickle.loads(pickle.dumps(some))) == list(some)
    for index in (10, -11, [0, 10]):
        with pytest.raises(IndexError):
            documents[index]


@pytest.mark.parametrize(
    ("name", "split", "documents", "queries", "positives", "zeros"),
    [
        ("nl2bash", "train", 10_594, 10_103, 11_208, 0),
        ("nl2bash", "dev", 10_594, 480, 556, 0),
        ("nl2bash", "test", 10_594, 664, 818, 0),
        ("nl2bash-judged", "dev", 5_125, 97, 637, 1_076),
        ("nl2bash-judged", "test", 5_125, 546, 1_818, 1_784),
        ("banking77", "train", 77, 8_890, 8_890, 0),
        ("banking77", "dev", 77, 978, 978, 0),
        ("banking77", "test", 77, 3_079, 3_079, 0),
        ("cranfield", "test", 1_398, 225, 1_611, 225),
        ("drcd", "train", 2_000, 3_148, 3_148, 0),
        ("drcd", "dev", 2_000, 376, 376, 0),
        ("drcd", "test", 2_000, 3_493, 3_493, 0),
    ],
)
def test_real_sets_have_the_counts_of_their_readme(
    shared_data: Path, tmp_path: Path, name: str, split: str, documents: int, queries: int, positives: int, zeros: int
) -> None:
    found = load_retrieval_set(shared_data / name, split, cache_dir=tmp_path)
    assert (len(found.documents), len(found.queries), len(found.relevant)) == (documents, queries, queries)
    assert (sum(map(len, found.relevant)), found.summary.negatives) == (positives, zeros)
    table = load_records(shared_data / name, split=split, cache_dir=tmp_path)
    assert (len(table), table.summary.positives, table.summary.negatives) == (queries, positives, zeros)
    assert not table.summary.drops
    assert table[0].query == found.queries[0]
    assert table[0].positives == tuple(found.documents[found.relevant[0]])
