"""train/rerank.py as users start it: real commands, real ranks, real kills."""

import json
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from ranks import run_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nestling.models.reranker import Reranker
from recipes.runs import (
    assert_said,
    assert_same_run,
    assert_same_weights,
    kill_after_step,
    launched,
    losses,
    metrics,
    run_and_record,
    stop_after_step,
    weights,
)
from report.pages import ParsedPage

STEPS = 10


def arguments(model: Path, data: Path, output: Path, /, **more: object) -> list[str]:
    settings: dict[str, object] = {
        "model": model,
        "output_dir": output,
        "train": f"{data}/first.jsonl,{data}/second.jsonl",
        "dev": data / "dev",
        "instruction": "Judge the command",
        "suffix": "?",
        "prefix": "",
        "query_max_length": 48,
        "document_max_length": 24,
        "lora.r": 4,
        "precision": "fp32",
        "batch_size": 8,
        "num_negatives": 2,
        "learning_rate": 3e-3,
        "chunk_tokens": 128,
        "max_steps": STEPS,
        "eval_steps": 5,
        "save_steps": 2,
        "use_cpu": "true",
        **more,
    }
    if settings.get("tuning") == "full":
        del settings["lora.r"]
    return ["train/rerank.py", *(f"--{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="module")
def finished(qwen3_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with evaluation, that nobody interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run_and_record(arguments(qwen3_base, data, run), run)


def test_a_run_says_what_it_will_do_and_did(finished: Path) -> None:
    assert_said(
        finished,
        "48 rows read, 48 kept",
        "bm25: ",
        "their order: nDCG@10",
        "'<Instruct>: Judge the command\\n<Query>: {query}\\n<Document>: {document}'",
        "'yes' and 'no'",
        "pointwise with labels 1 and 0 as targets",
        "40 rows, 40 with hard negatives; 40 positives, 200 hard negatives",
        "instruction: 'Judge the command' in all rows",
        "8 queries, 8 on each process",
        "up to 4 positives and 2 negatives",
        "10 (11 an epoch)",
        "(lora)",
        "(common prefixes run once)",
        "parity gates passed",
        "nDCG@10 before",
    )
    (shared,) = re.findall(r"tokens each, (0\.\d+) positions a token", (finished / "stdout.txt").read_text())
    assert float(shared) < 0.8


def test_a_run_ends_with_a_page_about_it(finished: Path) -> None:
    read = ParsedPage((finished / "report.html").read_text())
    assert read.loads == []
    for part in (
        "dev/dev: nDCG@10 ",
        "nDCG@10 on the dev sets",
        "Loss",
        "first train 48 48",
        "second train 40 40",
        "dev 8 8",
        "first stage",
        "before training the baseline",
        "better on ",
    ):
        assert part in read.text, part


def test_metrics_have_a_line_a_step_and_the_evaluations(finished: Path) -> None:
    lines = metrics(finished)
    assert sorted(losses(finished)) == list(range(1, STEPS + 1))
    keys = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "examples"}
    assert keys <= lines[1].keys()
    evaluations = {line["step"]: line["eval"] for line in lines if "eval" in line}
    assert list(evaluations) == [0, 5, 10]
    result = evaluations[10]
    assert isinstance(result, dict)
    assert set(result["dev/dev"]["8"]) >= {"nDCG@10", "MRR@10"}
    assert losses(finished)[STEPS][0] < losses(finished)[1][0]


def test_the_result_loads_and_is_what_was_trained(finished: Path, qwen3_base: Path) -> None:
    final = finished / "final"
    trained, base = Reranker.from_pretrained(final), Reranker.from_pretrained(qwen3_base, settings=None)
    assert (trained.settings.suffix, trained.settings.instruction) == ("?", "Judge the command")
    assert (trained.settings.query_max_length, trained.settings.document_max_length) == (48, 24)
    pairs = [("list files", "how to list the files"), ("list files", "count users")]
    found, before = trained.score(pairs), base.score(pairs)
    assert not torch.allclose(found, before, atol=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(final)
    (ids,) = trained.pairs("list files", ["count users"], query_max_length=48, document_max_length=24).ids
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([ids])).logits[0, -1]
    score = logits[[trained.pairs.no_id, trained.pairs.yes_id]].softmax(0)[1]
    torch.testing.assert_close(found[1], score, rtol=1e-4, atol=1e-5)
    assert "nDCG@10" in (final / "README.md").read_text()
    assert {path.name for path in finished.iterdir()} >= {"config.yaml", "run.json", "metrics.jsonl", "checkpoints"}


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_stopped_killed_and_resumed_equals_uninterrupted(
    dropout: float, finished: Path, qwen3_base: Path, data: Path, tmp_path: Path
) -> None:
    whole, run = finished, tmp_path / "run"
    command = arguments(qwen3_base, data, run, **{"lora.dropout": dropout})
    if dropout:
        whole = tmp_path / "whole"
        run_recipe(*arguments(qwen3_base, data, whole, **{"lora.dropout": dropout}))
    said = stop_after_step(command, run, random.randint(2, 4), signal.SIGTERM)  # the first is of the evaluation
    assert "stopped by SIGTERM; saved " in said
    assert "continue with the same command and --resume true" in said
    kill_after_step([*command, "--resume=true"], run, random.randint(6, 9), 1)  # among which is an evaluation or two
    assert not (run / "final").exists()
    run_recipe(*command, "--resume=true", "--dataloader_num_workers=1", "--chunk_tokens=128")
    assert losses(run) == losses(whole)
    assert [line["eval"] for line in metrics(run) if "eval" in line] == [
        line["eval"] for line in metrics(whole) if "eval" in line
    ]
    assert_same_weights(weights(run, STEPS), weights(whole, STEPS))
    assert_same_weights(*(load_file(each / "final" / "model.safetensors") for each in (run, whole)))


@pytest.mark.slow  # tests/distributed/test_rerank_ranks.py has two ranks in every run
def test_two_ranks_take_the_steps_of_one(finished: Path, qwen3_base: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe(*arguments(qwen3_base, data, run), ranks=2)
    assert "2 (DDP)" in result.stdout
    assert "8 queries, 4 on each process" in result.stdout
    assert_same_run(run, finished, loss=2e-4, weight=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("builds")
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_takes_the_steps_of_one(
    name: str, finished: Path, qwen3_base: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    result = run_recipe(*launched(name, arguments(qwen3_base, data, tmp_path / "run")))
    assert f"2 (DeepSpeed ZeRO-{name[-1]})" in result.stdout
    assert_same_run(tmp_path / "run", finished, loss=2e-4, weight=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"loss.objective": "pointwise_vocabulary", "tuning": "full", "learning_rate": 1e-3},
        {"loss.objective": "listwise", "attn_implementation": "sdpa"},
        {"loss.objective": "lambda"},
        {"precision": "bf16", "gradient_checkpointing_length": 0},
    ],
    ids=["vocabulary", "listwise", "lambda", "bf16"],
)
def test_other_settings_train(more: dict[str, object], qwen3_base: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe(*arguments(qwen3_base, data, run, **more))
    assert "parity gates passed" in result.stdout
    assert losses(run)[STEPS][0] < losses(run)[1][0]


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Graded pairs, and rows that have only negatives."""
    folder = tmp_path_factory.mktemp("unusual")
    graded = [{"sentence1": f"left {i}", "sentence2": f"right {i}", "score": i / 16} for i in range(16)]
    negatives = [{"query": f"q {i}", "positives": [], "negatives": [f"n {i}", f"m {i}"]} for i in range(16)]
    files = {"graded.jsonl": graded, "negatives.jsonl": negatives}
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ",".join(str(folder / name) for name in files)


@pytest.mark.slow
def test_graded_pairs_and_rows_of_negatives_train(qwen3_base: Path, data: Path, unusual: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_recipe(*arguments(qwen3_base, data, run, train=unusual, dev="[]", max_steps=4))
    assert "parity gates passed" in result.stdout
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert all(loss > 0 and norm > 0 for loss, norm in losses(run).values())


def test_a_dry_run_tries_chunks_of_several_sizes_and_writes_nothing(
    qwen3_base: Path, data: Path, unusual: str, tmp_path: Path
) -> None:
    """On graded pairs and rows of negatives, which it takes forward and backward."""
    given = arguments(qwen3_base, data, tmp_path / "run", train=unusual, dev="[]", dry_run="true")
    result = run_recipe(*(each for each in given if not each.startswith("--eval_steps")))
    assert re.search(r"tokens a step; fastest here: --chunk_tokens (32|64|128|256|512)$", result.stdout.strip())
    assert "positions a token" in result.stdout
    assert not (tmp_path / "run").exists()
