"""train/embed.py as users start it: real commands, real ranks, real kills."""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import COLD, run_recipe
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from nestling.report.comparison import format_score
from recipes.runs import (
    arguments,
    assert_said,
    assert_same_run,
    assert_same_weights,
    kill_after_step,
    losses,
    metrics,
    run_and_record,
    stop_after_step,
    weights,
    write_pairs,
)
from report.pages import ParsedPage


@pytest.fixture(scope="module")
def finished(qwen3: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with evaluation, on the path of Qwen3-Embedding with LoRA."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    more = {"max_steps": 8, "eval_steps": 4, "report_to": "tensorboard"}
    return run_and_record(arguments(qwen3, data, run, dev=data / "dev", **more), run)


def test_a_run_says_what_it_will_do_and_did(finished: Path) -> None:
    assert_said(
        finished,
        "48 rows read, 48 kept",
        "global batch",
        "8 queries, 8 on each process",
        "8 (11 an epoch)",
        "(lora)",
        "InfoNCE",
        "48 rows, 48 with hard negatives; 48 positives, 240 hard negatives",
        "instruction: the model's own in all rows",
        "truncated",
        "parity gate passed",
        "nDCG@10 before",
    )


def test_metrics_have_a_line_a_step_and_the_evaluations(finished: Path) -> None:
    lines = metrics(finished)
    assert sorted(losses(finished)) == list(range(1, 9))
    keys = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "examples"}
    assert keys <= lines[1].keys()
    evaluations = {line["step"]: line["eval"] for line in lines if "eval" in line}
    assert list(evaluations) == [0, 4, 8]
    result = evaluations[8]
    assert isinstance(result, dict)
    (by_dim,) = result.values()
    assert list(by_dim) == ["64", "32", "16"]
    assert set(by_dim["64"]) == {"nDCG@10", "MRR@10", "Recall@100", "MAP@100"}


def test_the_result_loads_where_users_load_it(finished: Path) -> None:
    final = finished / "final"
    model = SentenceTransformer(str(final), device="cpu", truncate_dim=16)
    assert model.encode(["list files"], prompt_name="query").shape == (1, 16)
    assert json.loads((final / "config.json").read_text())["matryoshka_dimensions"] == [64, 32, 16]
    assert (final / "adapter" / "adapter_model.safetensors").exists()
    assert "nDCG@10" in (final / "README.md").read_text()
    assert {path.name for path in finished.iterdir()} >= {"config.yaml", "run.json", "metrics.jsonl", "checkpoints"}


def test_a_run_ends_with_a_page_about_it(finished: Path) -> None:
    read = ParsedPage((finished / "report.html").read_text())
    assert read.loads == []
    (dev,) = [each["name"] for each in json.loads((finished / "read.json").read_text()) if each["role"] == "dev"]
    before = next(line["eval"] for line in metrics(finished) if "eval" in line)[dev]["64"]["nDCG@10"]
    for part in ("Gradient norm", "first train 48 48", "second train 40 40", f"{dev} dev 8 8", "lora:"):
        assert part in read.text, part
    assert f"nDCG@10 {format_score(before)} → " in read.text


def test_the_page_compares_the_dev_set_with_bm25_by_query(finished: Path) -> None:
    text = ParsedPage((finished / "report.html").read_text()).text
    steps = sorted(path.stem for path in (finished / "dev").glob("step-*.json") if "details" not in path.name)
    assert steps[0] == "step-0"
    best = steps[-1].removeprefix("step-")
    after = f"step {best}, chosen by these queries"
    for part in ("BM25", "before training 64 dimensions, float32 the baseline", f"{after} 64 dimensions"):
        assert part in text, part
    assert re.search(rf"\], p . \.?\d+; better on \d queries, .* \({after} against before training", text)
    assert any(title in text for title in ("Lost most nDCG@10", "Gained most nDCG@10", "Still worst"))
    evaluated = next(line["eval"] for line in metrics(finished) if "eval" in line and line["step"] == int(best))
    results = json.loads((finished / "dev" / f"step-{best}.json").read_text())["results"]
    assert {str(row["dim"]): row["metrics"] for row in results} == evaluated[results[0]["data"]]


def test_the_same_run_again_is_the_same_to_the_bit(finished: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    more = {"max_steps": 8, "eval_steps": 4, "dataloader_num_workers": 0}
    run_recipe(*arguments(qwen3, data, run, dev=data / "dev", **more), **COLD)
    assert losses(run) == losses(finished)
    assert_same_weights(weights(run, 8), weights(finished, 8))


def test_a_dry_run_tries_chunks_of_several_sizes_and_writes_nothing(bert: Path, data: Path, tmp_path: Path) -> None:
    result = run_recipe(*arguments(bert, data, tmp_path / "run", dry_run="true"))
    assert re.search(r"tokens a step; fastest here: --chunk_tokens (16|32|64|128|256)$", result.stdout.strip())
    assert "positions a token" in result.stdout
    assert re.search(r"data first +InfoNCE\n +48 rows, 48 with hard negatives; 48 positives, 240 hard", result.stdout)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_has_a_guide_and_a_teacher(bert: Path, data: Path, tmp_path: Path) -> None:
    """Their weights are told, and the step that is tried has their masks and terms; neither is loaded."""
    guided = {"loss.guide": "base", "loss.teacher": bert, "loss.regression_weight": 1}
    taught = {"loss.distillation_weight": 1, "loss.teacher_temperature": 0.1}
    result = run_recipe(*arguments(bert, data, tmp_path / "run", dry_run="true", **guided, **taught))
    for name in ("guide", "teacher"):
        said = rf"^loss.{name} {bert}: 0.00 GB of weights on each process while it embeds all texts, before step 1$"
        assert re.search(said, result.stdout, re.M)
    assert "fastest here" in result.stdout


def test_ranks_of_a_dry_run_agree_on_the_batch(bert: Path, tmp_path: Path) -> None:
    """Their shares are longest in batches of their own, whose documents would not fit together."""
    generator, file = random.Random(0), tmp_path / "ragged.jsonl"
    rows = [
        {
            "query": f"q {i}",
            "positives": [f"d {i} " + "w " * generator.randint(1, 20)],
            "negatives": [f"n {i} {j} " + "w " * generator.randint(1, 20) for j in range(generator.randint(1, 6))],
        }
        for i in range(120)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = arguments(bert, tmp_path, tmp_path / "run", train=file, num_negatives=6, dry_run="true")
    assert "fastest here" in run_recipe(*command, ranks=2).stdout


def test_a_finished_or_foreign_folder_is_not_overwritten(finished: Path, qwen3: Path, data: Path) -> None:
    result = run_recipe(*arguments(qwen3, data, finished, max_steps=8), check=False)
    assert result.returncode == 2
    assert "exists and is not empty" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(ranks: int, qwen3: Path, data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_recipe(*arguments(qwen3, data, whole, max_steps=14, save_steps=2), ranks=ranks)
    command = arguments(qwen3, data, killed, max_steps=14, save_steps=2)
    kill_after_step(command, killed, random.randint(3, 12), ranks)
    assert not (killed / "final").exists()
    run_recipe(*command, "--resume=true", "--dataloader_num_workers=1", ranks=ranks)
    assert losses(killed) == losses(whole)
    assert_same_weights(weights(killed, 14), weights(whole, 14))
    assert_same_weights(
        load_file(killed / "final" / "model.safetensors"), load_file(whole / "final" / "model.safetensors")
    )


@pytest.fixture(scope="module")
def bare(data: Path) -> Path:
    """Pairs without hard negatives."""
    rows = [json.loads(line) for line in write_pairs(data / "bare.jsonl", 32, "bare").read_text().splitlines()]
    (data / "bare.jsonl").write_text("".join(json.dumps({**row, "negatives": []}) + "\n" for row in rows))
    return data / "bare.jsonl"


def refreshing(model: Path, data: Path, bare: Path, run: Path, **more: object) -> list[str]:
    rules = {"refresh.steps": 4, "refresh.among": 4, "max_steps": 12, "save_steps": 3}
    return arguments(model, data, run, train=f"{data}/first.jsonl,{bare}", **rules, **more)


def test_hard_negatives_mined_again_in_a_run_that_is_killed(
    qwen3: Path, data: Path, bare: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_recipe(*refreshing(qwen3, data, bare, whole))
    assert re.search(r"hard negatives +mined again every 4 steps", result.stdout)
    refreshed = {(line["step"], *line["refresh"]) for line in metrics(whole) if "refresh" in line}
    assert refreshed == {(0, "bare"), *((step, name) for step in (4, 8) for name in ("first", "bare"))}
    command = refreshing(qwen3, data, bare, killed)
    kill_after_step(command, killed, random.randint(3, 13), 1)  # lines of metrics, among them those of refreshes
    run_recipe(*command, "--resume=true", "--dataloader_num_workers=1")
    assert losses(killed) == losses(whole)
    assert_same_weights(weights(killed, 12), weights(whole, 12))
    for path in (whole / "refresh").rglob("*.arrow"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.slow  # tests/test_refresh.py has two ranks that mine
def test_two_ranks_mine_and_train_as_one(qwen3: Path, data: Path, bare: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = {"lora.dropout": 0.0}
    run_recipe(*refreshing(qwen3, data, bare, one, **more))
    run_recipe(*refreshing(qwen3, data, bare, two, **more), ranks=2)
    assert_same_run(two, one, loss=2e-4, weight=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_says_so_and_the_run_goes_on(
    number: signal.Signals, bert: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = arguments(bert, data, run, max_steps=400)
    said = stop_after_step(command, run, 3, number)
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert f"stopped by {number.name}; saved {checkpoint}; continue with the same command and --resume true" in said
    step = int(checkpoint.name.removeprefix("step-"))
    assert sorted(losses(run)) == list(range(1, step + 1))


def test_two_ranks_and_packed_chunks_take_the_steps_of_one(qwen3: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more: dict[str, object] = {"max_steps": 4, "lora.dropout": 0.0, "dev": data / "dev"}
    run_recipe(*arguments(qwen3, data, one, **more))
    run_recipe(*arguments(qwen3, data, two, **more), ranks=2, **COLD)
    packed = tmp_path / "packed"
    run_recipe(
        *arguments(
            qwen3,
            data,
            packed,
            **more,
            attn_implementation="varlen",
            gradient_checkpointing_length=0,
            activation_memory=0,
        )
    )
    for step, (loss, norm) in losses(one).items():
        assert losses(two)[step] == pytest.approx((loss, norm), rel=2e-4), step
        assert losses(packed)[step] == pytest.approx((loss, norm), rel=2e-4), step
    evaluations = [[line["eval"] for line in metrics(run) if "eval" in line] for run in (one, two)]
    assert evaluations[0][0] == evaluations[1][0]


def test_graded_pairs_teacher_scores_and_own_negatives_train_side_by_side(bert: Path, tmp_path: Path) -> None:
    graded = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 16} for i in range(16)]
    scored = [
        {
            "query": f"q {i}",
            "positives": [f"p {i}"],
            "negatives": [f"n {i}", f"m {i}"],
            "positive_scores": [1.0],
            "negative_scores": [0.5, 0.1],
        }
        for i in range(16)
    ]
    for name, rows in (("graded", graded), ("scored", scored)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tmp_path / "run.yaml"
    settings.write_text(
        f"train:\n- path: {tmp_path}/graded.jsonl\n- path: {tmp_path}/scored.jsonl\n  in_batch_negatives: false\n"
        "loss: {distillation_weight: 0.5}\nbatch_size: 8\nprecision: fp32\nmatryoshka_dims: [16]\n"
        "learning_rate: 1e-3\nnum_train_epochs: 2\n"
        "query_max_length: 16\ndocument_max_length: 16\nuse_cpu: true\n"
    )
    run = tmp_path / "run"
    run_recipe("train/embed.py", "--config", str(settings), f"--model={bert}", f"--output_dir={run}")
    assert len(losses(run)) == 8
    assert all(loss > 0 and norm > 0 for loss, norm in losses(run).values())
    assert (run / "final" / "model.safetensors").exists()


def test_an_instruction_that_all_rows_have_is_said_everywhere(bert: Path, tmp_path: Path) -> None:
    """In the plan, on the card and among the prompts, also of an export of the checkpoint; the model's own is empty."""
    task = "Given a question about animals, find the sentence that answers it"
    rows = [{"query": f"q {i}", "pos": [f"p {i}"], "neg": [f"n {i}"], "prompt": task} for i in range(16)]
    (tmp_path / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = arguments(bert, tmp_path, tmp_path / "run", train=tmp_path / "animals.jsonl", max_steps=2)
    run = run_and_record(command, tmp_path / "run")
    prompt = f"Instruct: {task}\nQuery:"
    said = f"instruction: {task!r} in 16 of 16 rows"
    assert_said(run, f"instructions of rows: {task!r} in 16 of 16 rows", said, repr(prompt))
    assert f"| animals | 16 | InfoNCE; 16 rows, 16 with hard negatives; 16 positives, 16 hard negatives; {said} |" in (
        run / "final" / "README.md"
    ).read_text(encoding="utf-8")
    run_recipe("scripts/export.py", f"--checkpoint={run}/checkpoints/step-2", f"--output={tmp_path}/again")
    for folder in (run / "final", tmp_path / "again"):
        prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
        assert prompts == {"query": prompt, "document": "", "animals": prompt}


def test_a_step_that_is_not_finite_is_skipped_and_a_row_of_them_stops(bert: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"learning_rate": 1e30, "warmup_ratio": 0, "max_grad_norm": 0, "max_steps": 30, "tuning": "full"}
    command = arguments(bert, data, run, **settings)
    result = run_recipe(*command, check=False)
    assert result.returncode != 0
    assert "5 steps in a row had a loss or gradient that is not finite" in result.stderr
    assert metrics(run)[-1]["skipped_steps"] == 4
    assert result.stderr.count("its update was skipped") == 4


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_in_which_no_step_teaches_anything_stops_on_all_ranks(
    ranks: int, bert: Path, data: Path, tmp_path: Path
) -> None:
    """Every negative is masked, which the settings and the data do not show."""
    run, masked = tmp_path / "run", {"loss.score_margin": -1.9, "num_negatives": 0, "max_steps": 6, "save_steps": 6}
    result = run_recipe(*arguments(bert, data, run, **masked), ranks=ranks, check=False)
    assert result.returncode != 0
    said = "the loss and the gradient of steps 1 to 6 are exactly 0: nothing is learnt any more. no step taught"
    assert result.stderr.count(said) == ranks
    assert "first, second: no query has a negative left in its batch" in result.stderr
    assert [line["grad_norm"] for line in metrics(run)] == [0.0] * 6
    assert not (run / "checkpoints").exists()
    assert not (run / "final").exists()


def test_what_was_learnt_before_steps_that_teach_nothing_is_saved(bert: Path, tmp_path: Path) -> None:
    """The one pair of another score is in the first of 60 batches."""
    first = int(np.random.default_rng([42, 0, 0]).permutation(240)[0])
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": float(i == first)} for i in range(240)]
    (tmp_path / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    more = {"train": tmp_path / "graded.jsonl", "batch_size": 4, "save_steps": 20, "save_total_limit": 1}
    result = run_recipe(*arguments(bert, tmp_path, run, **more), check=False)
    assert result.returncode == 2
    assert "steps 2 to 51 are exactly 0" in result.stderr
    assert f"saved {run}/checkpoints/step-51, which scripts/export.py turns into a model to serve" in result.stderr
    assert "- graded: CoSENT orders the pairs of a batch by their scores" in result.stderr
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-40", "step-51"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"query_max_length": 2}, "query_max_length is 2, and prompt and special tokens alone take 2"),
    ],
)
def test_bad_input_is_one_clear_error(
    more: dict[str, object], message: str, bert: Path, data: Path, tmp_path: Path
) -> None:
    """As users see it; test_embed_input.py goes through all that can be wrong."""
    run = tmp_path / "run"
    result = run_recipe(*arguments(bert, data, run, **more), check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (run / "final").exists()


def test_a_run_is_not_resumed_on_changed_data(bert: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", write_pairs(tmp_path / "pairs.jsonl", 16, "first")
    command = [*arguments(bert, tmp_path, run, train=file, max_steps=2), "--save_steps=1"]
    run_recipe(*command)
    shutil.rmtree(run / "final")
    write_pairs(file, 17, "first")
    result = run_recipe(*command, "--resume=true", check=False)
    assert result.returncode == 2
    assert "the training data is not what the run in" in result.stderr


@pytest.mark.slow
def test_bfloat16_weights_resume_to_the_bit_and_are_exported(bert: Path, data: Path, tmp_path: Path) -> None:
    """With torchao's step as it is, for it takes seconds to compile for each shape."""
    pytest.importorskip("torchao", reason="the gpu extra is not installed")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"tuning": "full", "precision": "bf16", "optim": "adamw_torch_8bit", "max_steps": 4, "save_steps": 2}
    run_recipe(*arguments(bert, data, whole, **settings), TORCHDYNAMO_DISABLE="1")
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "final")
    shutil.rmtree(stopped / "checkpoints" / "step-4")
    run_recipe(*arguments(bert, data, stopped, **settings, resume="true"), TORCHDYNAMO_DISABLE="1")
    assert {each.dtype for each in weights(stopped, 4).values() if each.is_floating_point()} == {torch.bfloat16}
    assert_same_weights(weights(stopped, 4), weights(whole, 4))
    finals = [load_file(each / "final" / "model.safetensors") for each in (whole, stopped)]
    assert_same_weights(*finals)
    other = run_recipe(
        *arguments(bert, data, stopped, **{**settings, "optim": "adamw_torch_fused"}, resume="true"), check=False
    )
    assert "optim: adamw_torch_8bit then, adamw_torch_fused now" in other.stderr
