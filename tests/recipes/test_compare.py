"""scripts/compare.py puts result files side by side."""

import json
from pathlib import Path

import pytest

from recipes.runs import run_main
from scripts.compare import main, read_results, table_rows


def write(path: Path, *results: tuple[str, int | None, float]) -> Path:
    listed = [
        {"data": data, "dim": dim, "embedding_precision": dim and "float32", "metrics": {"nDCG@10": value}}
        for data, dim, value in results
    ]
    path.write_text(json.dumps({"results": listed}), encoding="utf-8")
    return path


def test_what_has_no_dimension_stands_in_every_row_of_its_data(tmp_path: Path) -> None:
    columns = {
        "bm25": read_results(write(tmp_path / "bm25.json", ("a", None, 0.25), ("b", None, 0.5)), "nDCG@10")[None],
        "model": read_results(write(tmp_path / "model.json", ("a", 384, 0.75), ("a", 32, 0.125)), "nDCG@10")[None],
    }
    assert table_rows(columns) == [
        ["b", None, None, 0.5, None],
        ["a", 384, "float32", 0.25, 0.75],
        ["a", 32, "float32", 0.25, 0.125],
    ]


def test_a_reranker_has_a_column_for_its_order_and_one_for_the_fused(tmp_path: Path) -> None:
    orders = {"first stage": 0.25, "reranked": 0.5, "fused": 0.75}
    listed = [
        {"data": "a", "dim": None, "embedding_precision": None, "order": order, "metrics": {"nDCG@10": value}}
        for order, value in orders.items()
    ]
    (tmp_path / "both.json").write_text(json.dumps({"results": listed}), encoding="utf-8")
    model = write(tmp_path / "model.json", ("a", 384, 0.125))
    done = run_main(main, "--results", f"{model},{tmp_path / 'both.json'}")
    assert done.returncode == 0, done.stderr
    heading, _, row = done.stdout.splitlines()[1:]
    assert heading.split() == ["data", "dim", "embedding_precision", "model", "both", "both", "fused"]
    assert row.split() == ["a", "384", "float32", "0.125", "0.500", "0.750"]


def test_sets_that_were_measured_otherwise_are_left_out(tmp_path: Path) -> None:
    """As mteb's tasks of other kinds are."""
    listed = [
        {"data": "a", "dim": 8, "embedding_precision": "float32", "metrics": {"nDCG@10": 0.5}},
        {"data": "b", "dim": 8, "embedding_precision": "float32", "metrics": {"cosine_spearman": 0.25}},
    ]
    (tmp_path / "mteb.json").write_text(json.dumps({"results": listed}), encoding="utf-8")
    assert read_results(tmp_path / "mteb.json", "nDCG@10") == {None: {("a", 8, "float32"): 0.5}}
    assert read_results(tmp_path / "mteb.json", "cosine_spearman") == {None: {("b", 8, "float32"): 0.25}}
    with pytest.raises(ValueError, match=r"no metric 'mrr'; it has nDCG@10, cosine_spearman"):
        read_results(tmp_path / "mteb.json", "mrr")


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
