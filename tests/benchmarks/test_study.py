"""scripts/bench/study.py: what its results and p values are of."""

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestling.retrieval.significance import randomisation_p
from recipes.runs import run_main

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("study_tables")


def results(gain: np.ndarray[Any, Any], groups: list[str] | None) -> dict[str, list[dict[str, Any]]]:
    def run(values: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"scores": {"set": {"8": values.tolist()}}, "groups": {"set": groups}, "seconds": 1.0}

    return {"theirs": [run(np.zeros(len(gain)))], "ours": [run(gain)]}


def test_p_goes_by_groups_of_queries(tables: Any) -> None:
    """Three groups that gain as one are three observations, however many queries they have: p is 2 / 2^3 at least."""
    gain, groups = np.full(30, 0.1), [f"g{i % 3}" for i in range(30)]
    by_queries = tables.p_value(results(gain, None), "ours", "theirs", "set", [8])
    by_groups = tables.p_value(results(gain, groups), "ours", "theirs", "set", [8])
    assert by_queries == randomisation_p(gain[:, None])[0] < 0.001
    assert by_groups == pytest.approx(0.25, abs=0.02)


def beir(folder: Path) -> Path:
    """Three queries of two groups, in the splits train, dev and test."""
    (folder / "qrels").mkdir(parents=True)
    texts = ["list files", "count users", "find ports"]
    documents = [{"_id": f"d{i}", "title": "", "text": f"how to {text}"} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": text, "metadata": {"group": f"g{i // 2}"}} for i, text in enumerate(texts)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{i}\td{i}\t1\n" for i in range(3))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


Study = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def study(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Run it in this process, in a folder of its own, for the model before training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(BENCH)
    main = importlib.import_module("study").main
    common = ["--model", str(bert), "--settings", "base", "--seeds", "1", "--dims", "48,16", "--output", "study"]
    return lambda *flags: run_main(main, *common, "--sets", "own", *flags)


def test_a_study_goes_on_under_its_own_conditions_alone(study: Study, tmp_path: Path) -> None:
    for name in ("own", "far"):
        beir(tmp_path / name)
    file = tmp_path / "study" / "own" / "base.1.dev.json"
    assert study().returncode == 0
    first = json.loads(file.read_text())
    assert (list(first["scores"]), first["groups"]) == (["own"], {"own": ["g0", "g0", "g1"]})

    again = study()
    assert again.returncode == 0 and "own 1 base" not in again.stdout, "it is measured once"
    for flag, said in (("--max_length=32", "max_length 64 then, 32 now"), ("--pairs=2", "pairs 2560 then, 2 now")):
        other = study(flag)
        assert other.returncode == 2
        assert f"study/own has results of other conditions ({said}); give another --output" in other.stderr

    more = study("--also", "far")
    assert more.returncode == 0, more.stderr
    assert json.loads(file.read_text())["scores"].keys() == {"own", "far"}, "a further set is measured"
    assert "nDCG@10 on far" in more.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--also", "other/own"], "sets, also: two datasets are called 'own'"),
        (["--split", "eval"], "own: expected a BEIR folder with qrels of eval; found dev, test, train"),
        (["--also", "far"], "far: expected a BEIR folder with qrels of test; found none"),
        (["--baseline", "defualts"], "baseline: defualts; expected one of base, sentence-transformers, defaults, "),
    ],
)
def test_refused(study: Study, tmp_path: Path, flags: list[str], message: str) -> None:
    beir(tmp_path / "own")
    done = study(*flags)
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr


def test_a_setting_whose_flags_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    require_same = importlib.import_module("study_conditions").require_same
    require_same(tmp_path / "own", {"pairs": 8}, {"defaults": "", "hot": "--loss.temperature=0.1"})
    require_same(tmp_path / "own", {"pairs": 8}, {"cold": "--loss.temperature=0.01"})  # another setting joins
    with pytest.raises(ValueError, match=r"setting hot '--loss.temperature=0.1' then, '--loss.temperature=0.2' now"):
        require_same(tmp_path / "own", {"pairs": 8}, {"hot": "--loss.temperature=0.2"})
