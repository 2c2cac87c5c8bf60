"""Rows that name their documents by ids in a corpus beside them, as NVIDIA NeMo Automodel writes them."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.data_checks.rows import open_rows
from nestling.records import Record, RecordTable, load_records

TASK = "Given a question, retrieve passages that answer it"
DOCUMENTS = {"d1": "Owls hunt at night.", "d2": "Hens sleep.", "3": "Larks sing at dawn.", "d4": " "}
ROW: dict[str, Any] = {
    "question_id": "q1",
    "question": "which bird hunts at night",
    "corpus_id": "birds",
    "pos_doc": [{"id": "d1"}],
    "neg_doc": [{"id": "d2"}, 3],
}
EXPECTED = Record(ROW["question"], (DOCUMENTS["d1"],), (DOCUMENTS["d2"], DOCUMENTS["3"]))


def corpus(folder: Path, name: str = "birds", *, parquet: bool = False, **metadata: Any) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "merlin_metadata.json").write_text(json.dumps({"class": "TextQADataset", "corpus_id": name, **metadata}))
    if parquet:
        pq.write_table(pa.table({"id": list(DOCUMENTS), "text": list(DOCUMENTS.values())}), path / "train.parquet")
    else:
        rows = [json.dumps({"id": identifier, "text": text}) for identifier, text in DOCUMENTS.items()]
        (path / "documents.jsonl").write_text("\n".join(rows))
    return path


def write(folder: Path, *rows: Any, corpora: Any = None, name: str = "train.json") -> Path:
    """A set as NVIDIA's tools write it, over several lines."""
    path = folder / name
    path.write_text(
        json.dumps({"corpus": [{"path": "./birds"}] if corpora is None else corpora, "data": rows}, indent=2)
    )
    return path


def load(folder: Path, path: Path, **options: Any) -> RecordTable:
    return load_records(path, cache_dir=folder / "cache", **options)


def refusal(folder: Path, path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        load(folder, path, **options)
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("corpora", [{"path": "./birds"}, [{"path": "birds/"}]])
def test_ids_become_texts(tmp_path: Path, parquet: bool, corpora: Any) -> None:
    corpus(tmp_path, parquet=parquet)
    path = write(tmp_path, ROW, ROW | {"question": "another", "neg_doc": []}, corpora=corpora)
    table = load(tmp_path, path)
    assert [table[0], table[1]] == [EXPECTED, Record("another", EXPECTED.positives)]
    assert table.summary.ignored == (("corpus_id", 2), ("question_id", 2))
    rows = open_rows(path, cache_dir=tmp_path / "cache")
    assert len(rows) == 2


def test_an_absolute_path_and_data_before_the_corpus(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "elsewhere")
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [ROW], "corpus": [{"path": str(folder)}]}))
    assert load(tmp_path, path)[0] == EXPECTED


def test_two_corpora_may_have_the_same_ids(tmp_path: Path) -> None:
    corpus(tmp_path)
    other = corpus(tmp_path, "others", parquet=True, query_instruction=f"Instruct: {TASK}\nQuery: ")
    pq.write_table(pa.table({"id": ["d1"], "title": ["Otters"], "text": ["swim."]}), other / "train.parquet")
    swims = {"question": "who swims", "corpus_id": "others", "pos_doc": "d1", "neg_doc": None}
    table = load(tmp_path, write(tmp_path, ROW, swims, corpora=[{"path": "birds"}, {"path": "others"}]))
    assert [table[0], table[1]] == [EXPECTED, Record("who swims", ("Otters swim.",), instruction=TASK)]
    lost = swims | {"corpus_id": "fish"}
    message = refusal(tmp_path, write(tmp_path, lost, corpora=[{"path": "birds"}, {"path": "others"}]))
    assert message == (
        "train.json:11: corpus_id: no folder has the corpus_id 'fish'; expected one of 'birds', 'others'"
    )


def test_other_instructions_of_a_corpus_are_counted(tmp_path: Path) -> None:
    corpus(tmp_path, query_instruction="query:", passage_instruction="passage:")
    table = load(tmp_path, write(tmp_path, ROW))
    assert table[0] == EXPECTED
    assert {field for field, _ in table.summary.ignored} >= {"query_instruction", "passage_instruction"}


def test_scores_of_mined_negatives_are_kept(tmp_path: Path) -> None:
    corpus(tmp_path)
    scored = ROW | {"neg_doc": [{"id": "d2", "score": 0.3}, {"id": 3, "score": 0.2}], "negative_mining_performed": True}
    assert load(tmp_path, write(tmp_path, scored))[0].negative_scores == (0.3, 0.2)
    both = scored | {"pos_doc": [{"id": "d1", "score": 0.9}]}
    table = load(tmp_path, write(tmp_path, both))
    assert (table[0].positive_scores, table.has_scores) == ((0.9,), True)


@pytest.mark.parametrize("corpora", [{}, [], None])
def test_rows_with_their_texts_inside(tmp_path: Path, corpora: Any) -> None:
    row = {"question": ROW["question"], "pos_doc": "Owls hunt at night.", "neg_doc": ["Hens sleep."]}
    path = tmp_path / "train.json"
    members = {} if corpora is None else {"corpus": corpora}
    path.write_text(json.dumps({**members, "data": [row, row | {"question": "another"}]}, indent=1))
    table = load(tmp_path, path)
    assert (len(table), table[0]) == (2, Record(ROW["question"], ("Owls hunt at night.",), ("Hens sleep.",)))
    path.write_text(json.dumps({**members, "data": [row | {"pos_doc": ""}]}, indent=1))
    line = {None: 3, "[]": 4, "{}": 4}[None if corpora is None else json.dumps(corpora)]
    assert refusal(tmp_path, path) == f"train.json:{line}: pos_doc: the text is empty"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"pos_doc": [{"id": "d9"}]}, "pos_doc[0]: document 'd9' of birds is not there"),
        ({"neg_doc": ["d2", "d8"]}, "neg_doc[1]: document 'd8' of birds is not there"),
        ({"neg_doc": ["d4"]}, "neg_doc[0]: document 'd4' of birds has neither title nor text"),
        ({"neg_doc": [{"text": "Hens sleep."}]}, "neg_doc[0]: expected the id of a document in the corpus"),
        ({"neg_doc": [0.5]}, "neg_doc[0]: expected the id of a document in the corpus"),
        ({"neg_doc": [{"id": "d2", "score": 1}, "3"]}, "neg_doc[1]: score: missing, while others of the row have one"),
        ({"neg_doc": ["\ud800"]}, "neg_doc[0]: half of a surrogate pair at character 0; it is no valid text"),
        ({"pos_doc": []}, "positives: the list is empty; expected at least one; rows that have only negatives can"),
        ({"question": None}, "question: missing"),
        (
            {"negatives": ["Hens sleep."]},
            "negatives: beside question, pos_doc and neg_doc, of which it is made; rename",
        ),
        ({"negative_texts": ["Hens sleep."]}, "negative_texts: holds negatives, and dialect nestling does not read it"),
    ],
)
def test_refused_rows(tmp_path: Path, part: dict[str, Any], message: str) -> None:
    """With the line on which the row begins."""
    corpus(tmp_path)
    path = write(tmp_path, ROW, ROW | part)
    lines = path.read_text().splitlines()
    line = [number for number, text in enumerate(lines, 1) if text == "    {"][-1]
    assert refusal(tmp_path, path).startswith(f"train.json:{line}: {message}")


@pytest.mark.parametrize(
    ("files", "metadata", "message"),
    [
        (None, {}, "train.json:2: corpus: there is no folder birds; paths are relative to that of the file"),
        ({}, None, 'birds/merlin_metadata.json: file: missing; expected {"class": "TextQADataset", "corpus_id": …}'),
        ({}, "[1]", "birds/merlin_metadata.json:1: file: expected an object with class and corpus_id"),
        ({}, "{", "birds/merlin_metadata.json:1: file: broken JSON"),
        ({}, {"class": "ColPaliDataset"}, "birds/merlin_metadata.json:1: class: 'ColPaliDataset' cannot be read, only"),
        ({}, {"corpus_id": None}, "birds/merlin_metadata.json:1: corpus_id: missing"),
        (
            {"corpus.csv": "id,text\n"},
            {},
            "birds: folder: expected documents (id, text) in .parquet, .jsonl, .jsonl.gz files; found 'corpus.csv', ",
        ),
        ({"a.jsonl": '{"_id": "d1", "text": "x"}'}, {}, "birds/a.jsonl:1: id: missing"),
        (
            {"a.jsonl": '{"id": "d1", "text": "x"}\n', "b.jsonl": '\n{"id": "d1", "text": "y"}'},
            {},
            "birds/b.jsonl:2: id: used twice, first in line 1 of a.jsonl; ids must be unique (1 rows repeat one)",
        ),
        ({"a.jsonl": ""}, {}, "birds/a.jsonl:1: file: holds no rows"),
    ],
)
def test_refused_folders(tmp_path: Path, files: dict[str, str] | None, metadata: Any, message: str) -> None:
    for name, content in (files or {}).items():
        (tmp_path / "birds").mkdir(exist_ok=True)
        (tmp_path / "birds" / name).write_text(content)
    if files is not None:
        (tmp_path / "birds").mkdir(exist_ok=True)
        whole = {"class": "TextQADataset", "corpus_id": "birds"} | metadata if isinstance(metadata, dict) else metadata
        if whole is not None:
            content = whole if isinstance(whole, str) else json.dumps(whole)
            (tmp_path / "birds" / "merlin_metadata.json").write_text(content)
    assert refusal(tmp_path, write(tmp_path, ROW)).startswith(message)


def test_of_several_splits_the_one_to_train_on_is_read(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    (folder / "documents.jsonl").rename(folder / "train-00000-of-00001.jsonl")
    (folder / "data").mkdir()
    (folder / "data" / "test.jsonl").write_text('{"id": "d1", "text": "of the test split"}')
    assert load(tmp_path, write(tmp_path, ROW))[0] == EXPECTED


def test_a_changed_corpus_is_read_again(tmp_path: Path) -> None:
    folder = corpus(tmp_path)
    path = write(tmp_path, ROW)
    before = load(tmp_path, path)
    assert load(tmp_path, path).path == before.path
    file = folder / "documents.jsonl"
    file.write_text(file.read_text().replace("Owls", "Bats"))
    os.utime(file, (0, 0))
    assert load(tmp_path, path)[0].positives == ("Bats hunt at night.",)


def test_other_members_and_columns_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path)
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"corpus": {"path": "birds"}, "data": [ROW], "dev": [ROW]}))
    assert refusal(tmp_path, path) == "train.json:1: dev: beside corpus and data; expected these alone"
    path.write_text(json.dumps({"corpus": {"path": "birds"}, "data": ROW}))
    assert refusal(tmp_path, path) == "train.json:1: data: expected a list of objects"
    path.write_text(json.dumps({"corpus": {"path": "birds"}, "data": [ROW]}) + "{}")
    assert refusal(tmp_path, path) == "train.json:1: line: broken JSON: more text after the end"
    path.write_text('{"corpus": {"path": "birds"}, "data": [], "data": []}')
    assert refusal(tmp_path, path) == "train.json:1: data: given twice in one object; expected each key once"
    message = refusal(tmp_path, write(tmp_path, ROW), columns={"query": "question", "positive": "pos_doc"})
    assert message == "train.json: columns: its rows name documents by their ids; leave the columns out"


@pytest.mark.parametrize(
    "rows",
    [
        [{"data": ["a", "b"], "query": "q", "positives": ["p"]}],
        [{"data": [{"n": 1}], "query": "q", "positives": ["p"]}, {"data": [], "query": "r", "positives": ["p"]}],
        [{"corpus": ["wiki"], "query": "q", "positives": ["p"]}],
        [{"corpus": {"name": "wiki"}, "query": "q", "positives": ["p"]}] * 2,
    ],
)
def test_rows_with_fields_of_these_names_stay_rows(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(tmp_path, path)[0] == Record("q", ("p",))


def test_blocks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path)
    path = write(tmp_path, *[ROW | {"question": f"q {i}", "number": 12345} for i in range(3)])
    for size in (1, 2, 7, 64):
        monkeypatch.setattr("nestling.records.json_files.BLOCK_BYTES", size)
        table = load_records(path, cache_dir=tmp_path / f"cache-{size}")
        assert [table[i].query for i in range(3)] == ["q 0", "q 1", "q 2"]
