"""scripts/choose.py on a small dev set, and its file in scripts/evaluate.py."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from recipes.runs import run_main
from scripts.choose import main
from scripts.evaluate import main as evaluate
from tiny import tiny_bert

choose = partial(run_main, main)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("other"), seed=3)


def test_what_is_chosen_can_be_measured(
    data: Path, bert: Path, other: Path, qwen3_reranker: Path, tmp_path: Path
) -> None:
    output, measured = tmp_path / "choice.json", tmp_path / "measured.json"
    models = ["--reranker", qwen3_reranker, "--depth", "10"]
    dev = ["--data", data / "dev", "--split", "dev"]
    done = choose(*dev, "--models", f"{bert},{other}", *models, "--output", output)
    assert done.returncode == 0, done.stderr
    choice = json.loads(output.read_text())
    assert done.stdout.startswith(f"chosen embedder: {choice['embedder']} (nDCG@10 on ")
    assert list(choice["embedders"]) == [str(bert), str(other)]
    assert choice["embedders"][choice["embedder"]] == max(choice["embedders"].values())
    again = choose(*dev, "--models", f"{bert},{other}", *models, "--output", output)
    assert again.returncode == 2 and "exists" in again.stderr

    done = run_main(
        evaluate, *dev, "--model", choice["embedder"], *models, "--rerank_weight", output, "--output", measured
    )
    assert done.returncode == 0, done.stderr
    by_order = {row["order"]: row["metrics"]["nDCG@10"] for row in json.loads(measured.read_text())["results"]}
    weights = choice["weights"]
    assert by_order["first stage"] == pytest.approx(weights[0])
    assert by_order["first stage"] == pytest.approx(max(choice["embedders"].values()))
    assert by_order["reranked"] == pytest.approx(weights[10])
    assert by_order["fused"] == pytest.approx(max(weights))


def test_checkpoints_that_the_run_measured_on_this_set_are_counted(
    data: Path, qwen3_reranker: Path, tmp_path: Path
) -> None:
    found = {}
    for name, steps in (("one", [0, 4]), ("three", [0, 2, 4, 6])):
        run, output = tmp_path / name, tmp_path / f"{name}.json"
        shutil.copytree(qwen3_reranker, run / "final")
        lines = [{"step": step, "eval": {"dev/dev": {"10": {"nDCG@10": 0.5}}}} for step in steps]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        flags = ["--data", data / "dev", "--reranker", run / "final", "--depth", "8", "--output", output]
        done = choose(*flags)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(output.read_text())
    assert (found["one"]["checkpoints"], found["three"]["checkpoints"]) == (1, 3)


def test_bm25_may_find_the_documents(data: Path, qwen3_reranker: Path, tmp_path: Path) -> None:
    output = tmp_path / "choice.json"
    done = choose("--data", data / "dev", "--reranker", qwen3_reranker, "--depth", "3", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("chosen reranker: ")
    assert json.loads(output.read_text())["embedder"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "a/b/c,d"], "--models a/b/c: no such directory"),
        (["--models", "a"], "nothing to choose from: give two models, or a --reranker"),
        (["--models", "a,a"], "models: one is given twice"),
        (["--reranker", "a", "--dims", "8"], "dims, query_prompt and document_prompt need models"),
    ],
)
def test_what_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = choose("--data", "x", "--output", tmp_path / "choice.json", *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dims", "60"], "dims: 60 is more than the model's embedding has, 48"),
        (["--query_max_length", "129"], "--query_max_length 129: {other} reads at most 128 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    options: list[str], message: str, data: Path, qwen3: Path, bert: Path, tmp_path: Path
) -> None:
    models = [tmp_path / "first", tmp_path / "other"]
    for source, model in zip((qwen3, bert), models, strict=True):
        shutil.copytree(source, model, ignore=shutil.ignore_patterns("*.safetensors"))  # there are no weights to read
    given = ["--models", f"{models[0]},{models[1]}", "--output", tmp_path / "choice.json"]
    done = choose("--data", data / "dev", *given, *options)
    assert done.returncode == 2
    assert message.format(other=models[1]) in done.stderr
