"""Rows of Parquet files and datasets: columns that are not used are not read, and what is refused still is."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import Record, load_records

PAIR = {"query": ["q", "r"], "positive": ["p", "s"]}
# A date that Python does not have: reading its column would fail.
NO_DATE = pa.array([2**60, None], pa.timestamp("ms"))


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(PAIR | columns), path)
    return path


def write_dataset(folder: Path, **columns: Any) -> Path:
    import datasets

    datasets.Dataset(pa.table(PAIR | columns)).save_to_disk(str(folder / "rows"))
    return folder / "rows"


@pytest.mark.parametrize("write", [write, write_dataset])
@pytest.mark.parametrize("columns", [None, {"query": "query", "positive": "positive"}])
def test_a_column_that_is_not_used_is_not_read(tmp_path: Path, write: Any, columns: dict[str, str] | None) -> None:
    vectors = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    source = write(tmp_path, crawled=NO_DATE, embedding=vectors, empty=pa.nulls(2))
    table = load_records(source, columns=columns, cache_dir=tmp_path / "cache")
    assert [table[0], table[1]] == [Record("q", ("p",)), Record("r", ("s",))]
    ignored = {"crawled", "embedding"} | ({"empty"} if columns else set())
    assert table.summary.ignored == tuple((name, 2) for name in sorted(ignored))


def test_a_value_that_python_does_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows.parquet:1: file: not a readable Parquet file: "):
        load_records(write(tmp_path, negative=NO_DATE), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"distractors": ["n", "m"]}, "rows.parquet:1: distractors: holds negatives"),
        ({"others": [["one two three"], ["n m o"]]}, "rows.parquet:1: others: holds texts, which may be"),
        ({"teacher_score": [0.1, 0.2]}, "rows.parquet:1: teacher_score: holds teacher scores"),
        ({"positve": ["a", "b"]}, "rows.parquet:1: positve: not a field of dialect"),
    ],
)
def test_what_is_refused_is_read(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_records(write(tmp_path, **column), cache_dir=tmp_path / "cache")


def test_media_without_content_are_accepted(tmp_path: Path) -> None:
    rows = {"query": ["q"], "response": ["p"], "images": pa.array([[]], pa.list_(pa.string())), "videos": pa.nulls(1)}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    assert load_records(tmp_path / "rows.parquet", cache_dir=tmp_path / "cache")[0] == Record("q", ("p",))
