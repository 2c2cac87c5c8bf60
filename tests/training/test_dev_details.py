"""What a run keeps of its dev sets: files as scripts/evaluate.py writes them, of step 0, the best steps and BM25."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.report.results import read_result
from nestling.run_files import BM25, DEV
from nestling.training import dev_details
from nestling.training.dev_details import evaluate_bm25, keep_bm25, keep_evaluation
from sets import random_set


def test_files_of_step_0_and_of_the_latest_two_best_steps_are_kept(tmp_path: Path) -> None:
    dev_set = random_set(tmp_path / "set", 12, 5)
    keep_bm25(tmp_path, [dev_set])
    whole = evaluate_bm25(dev_set)
    by_dim = replace(whole, metrics={8: whole.metrics[0], 4: {"nDCG@10": 0.25}})
    for step, best_before in ((0, None), (4, None), (8, 4), (12, 8)):
        keep_evaluation(tmp_path, step, best_before, [by_dim], model="base", axis="dim")
    names = [BM25, "step-0.json", "step-12.json", "step-8.json"]
    details = [name.replace(".json", ".details.jsonl") for name in names]
    assert sorted(path.name for path in (tmp_path / DEV).iterdir()) == sorted(names + details)

    bm25, after = read_result(tmp_path / DEV / BM25), read_result(tmp_path / DEV / "step-12.json")
    (key,) = bm25.metrics
    assert (key.data, key.dim, bm25.config["model"]) == (dev_set.name, None, None)
    assert [each.dim for each in after.metrics] == [8, 4]
    assert [each.dim for each in after.per_query] == [8]
    (line, *_) = after.detail_lines(after.main_key(dev_set.name))
    assert line["query"] == dev_set.queries[0]


def test_bm25_is_measured_once_and_not_on_large_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = random_set(tmp_path / "small", 12, 5), random_set(tmp_path / "large", 40, 5)
    monkeypatch.setattr(dev_details, "MOST_DOCUMENTS", 20)
    monkeypatch.setattr(dev_details, "MOST_QUERIES", 4)
    keep_bm25(tmp_path, [large])
    assert not (tmp_path / DEV).exists()
    keep_bm25(tmp_path, [small, large])
    path = tmp_path / DEV / BM25
    assert [row["data"] for row in json.loads(path.read_text())["results"]] == [small.name]
    assert read_result(path).per_query == {}, "too many queries to keep what was found for each"
    path.write_text("as it is")
    keep_bm25(tmp_path, [small])
    assert path.read_text() == "as it is"
