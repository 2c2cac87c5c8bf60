"""File formats: the same rows from each, the line of each row, and errors in files."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import Record, load_records
from nestling.records.sources import read_rows

ROWS: list[dict[str, Any]] = [
    {"query": "a, \"quoted\"\nquery", "positives": ["p", "[x]"], "negatives": [], "instruction": None},
    {"query": "second", "positives": ["é 玉山"], "negatives": ["n", "m"], "instruction": "task"},
]  # fmt: skip
RECORDS = [Record(r["query"], tuple(r["positives"]), tuple(r["negatives"]), None, None, r["instruction"]) for r in ROWS]


def jsonl(path: Path) -> None:
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def array(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2))


def delimited(delimiter: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(ROWS[0])
            for row in ROWS:
                writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row.values()])

    return write


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", jsonl),
        ("rows.json", jsonl),
        ("rows.jsonl.gz", gzipped),
        ("rows.json", array),
        ("rows.csv", delimited(",")),
        ("rows.tsv", delimited("\t")),
        ("rows.parquet", parquet),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    table = load_records(tmp_path / name, cache_dir=tmp_path / "cache")
    assert [table[i] for i in range(len(table))] == RECORDS
    assert table.name == "rows"


def lines(path: Path) -> list[int]:
    return [line for line, _ in read_rows(path, progress=False)]


def test_lines_of_rows(tmp_path: Path) -> None:
    for name, text, expected in (
        ("a.jsonl", '{"a": 1}\n\n  \n{"a": 2}', [1, 4]),
        ("a.csv", 'a,b\n"x\ny",1\n\nz,2\n', [2, 5]),
        ("a.json", '\n[\n {"a": 1}\n,\n{"a":\n 2}, {"a": 3}\n]\n', [3, 5, 6]),
        ("b.json", " [ ] \n", []),
    ):
        path = tmp_path / name
        path.write_text(text)
        assert lines(path) == expected


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
def test_json_array_in_blocks_of_any_size(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks end within rows, multi-byte characters and escapes."""
    monkeypatch.setattr("nestling.records.json_files.BLOCK_BYTES", block)
    rows = [{"query": "é玉\U0001f600\"]},{[" * 3, "n": i} for i in range(5)]  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))
    assert [row for _, row in read_rows(path, progress=False)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl:1: file: holds no rows"),
        ("a.jsonl", b"\n \n", "a.jsonl:1: file: holds no rows"),
        ("a.csv", b"", "a.csv:1: file: holds no rows"),
        ("a.csv", b"query,positive\n", "a.csv:1: file: holds no rows"),
        ("a.json", b"[]", "a.json:1: file: holds no rows"),
        ("a.jsonl", b'{"query": "q", "positive": "p"}\n{"query": "\xff"}', "a.jsonl:2: line: invalid UTF-8 at byte 11"),
        ("a.json", b'[{"query": "q",\n "positive": "\xff"}]', "a.json:2: line: invalid UTF-8"),
        ("a.json", b'[{"query": "q", "positive": "p"}\n{}]', "a.json:2: line: broken JSON: expected ',', got '{'"),
        ("a.json", b'[{"query": "q", "positive": "p"},]', "a.json:1: line: broken JSON"),
        ("a.json", b'[{"query": "q", "positive": "p"}', "a.json:1: line: broken JSON: expected ',', got 'the end'"),
        ("a.json", b'[{"query": "q", "positive": "p"}] x', "a.json:1: line: broken JSON: more text after the end"),
        (
            "a.json",
            b'[{"query": "q", "positive": "p"},\n {"query": "q" 3}]',
            "a.json:2: line: broken JSON: Expecting ',' delimiter at character 15 of the row",
        ),
        (
            "a.json",
            b'[{"score": ' + b"9" * 5000 + b"}]",
            "a.json:1: line: broken JSON: Exceeds the limit (4300 digits)",
        ),
        ("a.csv", b"query,pos\nq,[" + b"9" * 5000 + b"]\n", "a.csv:2: pos: expected a JSON array: Exceeds the limit"),
        ("a.json", b"[\n3]", "a.json:2: line: expected an object with named fields, got int"),
        ("a.csv", b"query,positive\nq,p\nq\n", "a.csv:3: line: 1 cells under 2 columns"),
        ("a.csv", b'query,positive\nq,p\n"q"x,p\n', "a.csv:3: line: broken CSV"),
        ("a.csv", b"query,query\nq,p\n", "a.csv:1: header: columns without a name, or twice the same"),
        ("a.csv", b'query,pos\nq,"[""p"""\n', "a.csv:2: pos: expected a JSON array"),
        ("a.csv", b"sentence1,sentence2,score\na,b,high\n", "a.csv:2: score: expected a number, got 'high'"),
        ("a.csv", b"sentence1,sentence2,score\na,b,nan\n", "a.csv:2: score: expected a finite number, got nan"),
        ("a.csv", b"query,positive\n,p\n", "a.csv:2: query: missing"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"query": "q", "positive": "p"}\n', mtime=0)[:-9],
            "a.jsonl.gz:1: file: broken gzip data",
        ),
        ("a.jsonl.gz", b'{"query": "q"}', "a.jsonl.gz:1: file: broken gzip data"),
        ("a.parquet", b"PAR1nothing", "a.parquet:1: file: not a readable Parquet file"),
        ("a.txt", b"text", "a.txt: file: cannot tell its format; expected a name in .jsonl"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/{message}")):
        load_records(path, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_parquet_refusal_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["q"] * 300, "positive": ["p"] * 299 + [None]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet:300: positive: missing"):
        load_records(path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_text_of_ten_megabytes(tmp_path: Path, name: str) -> None:
    path, text = tmp_path / name, "wörd " * 2_000_000
    if name.endswith("parquet"):
        pq.write_table(pa.table({"query": ["q"], "positive": [text]}), path)
    elif name.endswith("csv"):
        path.write_text(f"query,positive\nq,{text}\n")
    else:
        row = json.dumps({"query": "q", "positive": text}, ensure_ascii=False)
        path.write_text(f"[{row}]" if name.endswith("json") else row)
    assert load_records(path, cache_dir=tmp_path / "cache")[0] == Record("q", (text,))


@pytest.mark.parametrize("source", ["nowhere.jsonl", "/nowhere/at/all", "./nowhere", "a/b/c", "no where"])
def test_missing_file(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="file: there is no such file or folder"):
        load_records(source, cache_dir=tmp_path)


@pytest.mark.parametrize("source", ["", " "])
def test_empty_name(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="a dataset has an empty name; expected a file, folder or dataset id"):
        load_records(source, cache_dir=tmp_path)


def test_saved_datasets(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"question": ["q", "r"], "answer": ["p", "s"]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "dev": rows.select([1])}).save_to_disk(str(tmp_path / "many"))

    one = load_records(tmp_path / "one", cache_dir=tmp_path / "cache")
    dev = load_records(tmp_path / "many", split="dev", cache_dir=tmp_path / "cache")
    assert [one[0], one[1], dev[0]] == [Record("q", ("p",)), Record("r", ("s",)), Record("r", ("s",))]
    with pytest.raises(ValueError, match="there is no 'test'; available: train, dev"):
        load_records(tmp_path / "many", split="test", cache_dir=tmp_path / "cache")


def test_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "set").mkdir()
    for split, query in (("train", "q"), ("test", "r")):
        (tmp_path / "set" / f"{split}.jsonl").write_text(json.dumps({"query": query, "positives": ["p"]}))
    assert load_records(tmp_path / "set", split="test", cache_dir=tmp_path / "cache")[0] == Record("r", ("p",))
    with pytest.raises(ValueError, match=r"set: dataset: split 'dev' cannot be loaded: .*train.*test"):
        load_records(tmp_path / "set", split="dev", cache_dir=tmp_path / "cache")


def test_dataset_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no/such-set: dataset: there is no such file or folder, and as a dataset"):
        load_records("no/such-set", cache_dir=tmp_path)


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected corpus.jsonl and queries.jsonl \(BEIR\).*found notes.txt"):
        load_records(tmp_path / "folder", cache_dir=tmp_path / "cache")
