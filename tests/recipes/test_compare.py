"""scripts/compare.py puts result files side by side."""

import json
from pathlib import Path

import pytest

from scripts.compare import read_results, rows


def write(path: Path, *results: tuple[str, int | None, float]) -> Path:
    listed = [
        {"data": data, "dim": dim, "precision": dim and "float32", "metrics": {"nDCG@10": value}}
        for data, dim, value in results
    ]
    path.write_text(json.dumps({"results": listed}), encoding="utf-8")
    return path


def test_what_has_no_dimension_stands_in_every_row_of_its_data(tmp_path: Path) -> None:
    columns = {
        "bm25": read_results(write(tmp_path / "bm25.json", ("a", None, 0.25), ("b", None, 0.5)), "nDCG@10"),
        "model": read_results(write(tmp_path / "model.json", ("a", 384, 0.75), ("a", 32, 0.125)), "nDCG@10"),
    }
    assert rows(columns) == [
        ["b", None, None, 0.5, None],
        ["a", 384, "float32", 0.25, 0.75],
        ["a", 32, "float32", 0.25, 0.125],
    ]


def test_other_files_and_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file; expected one that scripts/evaluate\.py"):
        read_results(tmp_path / "none.json", "nDCG@10")
    other = tmp_path / "other.json"
    for text in ("[]", "{", '{"results": [{}]}'):
        other.write_text(text)
        with pytest.raises(ValueError, match=r"not a result of scripts/evaluate\.py"):
            read_results(other, "nDCG@10")
    with pytest.raises(ValueError, match=r"no metric 'mrr'; it has nDCG@10"):
        read_results(write(tmp_path / "a.json", ("a", 384, 0.5)), "mrr")
