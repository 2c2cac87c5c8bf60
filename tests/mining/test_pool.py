"""The pool: each text once, from a corpus or from records; equality but for case and punctuation; errors."""

from pathlib import Path

import numpy as np
import pytest

from mining.small import opened, random_rows, write_corpus, write_rows
from nestling.mining.pool import ConcatenatedTexts
from nestling.records import text_id
from nestling.records.words import folded_text_id
from sets import write_beir

ROWS = [
    {"query": "q", "positives": ["alpha", "not there"], "negatives": ["beta", "nor there"]},
    {"query": "p", "positives": ["gamma"]},
]


def test_a_corpus_and_documents_of_records_that_it_lacks(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["beta", "alpha", "beta", "delta", "alpha"])
    _, _, pool = opened(write_rows(tmp_path / "rows.jsonl", ROWS), corpus)
    assert list(pool.texts) == ["beta", "alpha", "delta", "not there", "gamma", "nor there"]
    assert (pool.size, len(pool)) == (3, 6)
    assert [pool.id_of(i) for i in range(3)] == ["d0", "d1", "d3"]
    assert pool.id_of(4) == f"text:{text_id('gamma'):016x}"
    assert pool.positions_of_ids(["d4", "d2", "d3", "d9"]) == {"d4": 1, "d2": 0, "d3": 2}
    assert pool.find(np.array([text_id("gamma"), text_id("other"), text_id("beta")])).tolist() == [4, -1, 0]
    assert str(pool) == (
        f"3 different documents of {corpus} (2 repeat the text of another); 3 documents of the records are not among "
        "them and only get scores"
    )


def test_a_pool_of_the_documents_of_records(tmp_path: Path) -> None:
    rows = random_rows(40)
    table, _, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    kept = [table[i] for i in range(len(table))]
    texts = [text for row in kept for text in row.positives] + [text for row in kept for text in row.negatives]
    assert list(pool.texts) == list(dict.fromkeys(texts))
    assert pool.identities.tolist() == [text_id(text) for text in pool.texts]
    assert pool.size == len(pool) == len(set(texts))
    with pytest.raises(ValueError, match="documents of records have no ids; a run file needs a --corpus"):
        pool.positions_of_ids(["d0"])


def test_a_beir_folder_is_its_own_corpus(tmp_path: Path) -> None:
    write_beir(tmp_path / "set", ["alpha", "beta"], ["q"], {"q0": {"d1": 1}})
    _, _, pool = opened(write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "set")
    assert list(pool.texts)[:2] == ["alpha", "beta"]


def test_a_folder_without_a_corpus(tmp_path: Path) -> None:
    """Its error said that there was no such file, of a folder that is there."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"set: folder: it holds no corpus\.jsonl; expected .*; found nothing$"):
        opened(rows, tmp_path / "set")
    (tmp_path / "set" / "queries.jsonl").touch()
    (tmp_path / "set" / "documents.jsonl").touch()
    with pytest.raises(ValueError, match=r"found documents\.jsonl, queries\.jsonl$"):
        opened(rows, tmp_path / "set")
    with pytest.raises(ValueError, match=r"nowhere: file: there is no such file; expected a folder in the BEIR"):
        opened(rows, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"corpus\.jsonl:1: file: holds no rows"),
        ([{"_id": "a", "text": ""}], r"corpus\.jsonl: no document has a text"),
        ([{"_id": "a", "text": "x"}, {"text": "y"}], r"corpus\.jsonl:2: _id: missing"),
    ],
)
def test_errors_of_corpora(tmp_path: Path, lines: list[dict[str, str]], message: str) -> None:
    corpus = write_rows(tmp_path / "corpus.jsonl", lines)
    with pytest.raises(ValueError, match=message):
        opened(write_rows(tmp_path / "rows.jsonl", ROWS), corpus)
    with pytest.raises(ValueError, match=r"nowhere: file: there is no such file"):
        opened(tmp_path / "rows.jsonl", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Find Files.", "find   files", True),
        ("ｆｉｌｅｓ①", "files1", True),
        ("Straße", "STRASSE", True),
        ("ls -l", "ls -a", False),
        ("***", "---", False),
        ("***", "***", True),
        ("北京。", "北京", True),
    ],
)
def test_texts_that_differ_only_in_case_punctuation_and_space(one: str, other: str, same: bool) -> None:
    assert (folded_text_id(one) == folded_text_id(other)) is same


def test_concatenated_texts_are_indexed_as_one_sequence() -> None:
    parts = [["a", "b"], np.array(["c"]), [], ["d", "e", "f"]]
    joined = ConcatenatedTexts([Arrays(part) for part in parts])
    everything = list("abcdef")
    assert list(joined) == everything
    assert [joined[i] for i in range(6)] == everything
    assert [joined[i:j] for i in range(7) for j in range(i, 7)] == [
        everything[i:j] for i in range(7) for j in range(i, 7)
    ]
    assert joined[np.array([5, 0, 2, 5])] == ["f", "a", "c", "f"]


class Arrays(list[str]):
    """A list that arrays of positions can be asked of, as `Texts`."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return [self[i] for i in index.tolist()] if isinstance(index, np.ndarray) else super().__getitem__(index)
