"""train/rerank.py with encoders: the same commands, with a head that is new or kept."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_recipe
from safetensors.torch import load_file

from nestling.config import RerankConfig, RerankLossConfig, TrainData
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.reranker import Reranker
from nestling.training.limits import require_readable_pairs
from nestling.training.models import load_reranker
from recipes.runs import (
    assert_said,
    assert_same_run,
    assert_same_weights,
    kill_after_step,
    losses,
    run_and_record,
    run_main,
    stop_after_step,
    weights,
)
from recipes.test_rerank import STEPS
from recipes.test_rerank import arguments as causal_arguments
from scripts.merge import main
from tiny import tiny_cross_encoder


def arguments(model: Path, data: Path, output: Path, /, **more: object) -> list[str]:
    causal = causal_arguments(model, data, output, **more)
    return [each for each in causal if not each.startswith(("--prefix", "--suffix", "--instruction"))]


@pytest.fixture(scope="module")
def finished(bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run from an embedder, whose head is new."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run_and_record(arguments(bert, data, run), run)


@pytest.mark.slow
def test_a_run_from_an_embedder_makes_a_cross_encoder(finished: Path) -> None:
    assert_said(
        finished,
        "'{query}' and '{document}', up to 128 tokens by the tokenizer's template",
        "new, trained in full from random weights",
        "pointwise with labels 1 and 0 as targets",
        "1.000 positions a token",
        "parity gates passed",
        "sentence-transformers reload against the written weights in memory",
        "nDCG@10 before",
    )
    assert losses(finished)[STEPS][0] < losses(finished)[1][0]
    trained = Reranker.from_pretrained(finished / "final")
    assert isinstance(trained, EncoderReranker) and not trained.new_head
    assert (trained.settings.query_max_length, trained.settings.document_max_length) == (48, 24)
    assert trained.pairs.max_length == 48 + 24 + 3


@pytest.mark.slow
def test_stopped_killed_and_resumed_equals_uninterrupted(
    finished: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = arguments(bert, data, run)
    stop_after_step(command, run, random.randint(2, 4), signal.SIGTERM)
    kill_after_step([*command, "--resume=true"], run, random.randint(6, 9), 1)
    run_recipe(*command, "--resume=true")
    assert losses(run) == losses(finished)
    assert_same_weights(weights(run, STEPS), weights(finished, STEPS))
    assert_same_weights(*(load_file(each / "final" / "model.safetensors") for each in (run, finished)))


@pytest.mark.slow
def test_its_checkpoints_are_merged_with_their_heads(finished: Path, tmp_path: Path) -> None:
    done = run_main(main, "--run", finished, "--last", "2", "--output", tmp_path / "merged", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    merged = load_file(tmp_path / "merged" / "model.safetensors")["classifier.weight"]
    ends = [weights(finished, step)["backbone.base_model.model.classifier.weight"] for step in (STEPS - 2, STEPS)]
    assert torch.dist(merged, (ends[0] + ends[1]) / 2) < 0.1 * torch.dist(*ends)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(finished: Path, bert: Path, data: Path, tmp_path: Path) -> None:
    run_recipe(*arguments(bert, data, tmp_path / "run"), ranks=2)
    assert_same_run(tmp_path / "run", finished, loss=2e-4, weight=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bert", {"tuning": "full", "learning_rate": 1e-3, "loss.objective": "listwise"}),
        ("modernbert", {"attn_implementation": "sdpa", "instruction": "judge:"}),
        ("mpnet", {"loss.labels": "hard"}),
        ("xlm-roberta", {"precision": "bf16", "gradient_checkpointing_length": 0}),
        ("deberta-v2", {"tuning": "full", "learning_rate": 1e-3}),
    ],
)
def test_other_encoders_train(kind: str, more: dict[str, object], data: Path, tmp_path: Path) -> None:
    instruction = more.pop("instruction", None)
    command = arguments(tiny_cross_encoder(tmp_path / kind, kind), data, tmp_path / "run", **more)
    result = run_recipe(*command, *([] if instruction is None else [f"--instruction={instruction}"]))
    assert "the model's own, trained in full" in result.stdout
    assert "parity gates passed" in result.stdout
    assert losses(tmp_path / "run")[STEPS][0] < losses(tmp_path / "run")[1][0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prefix": "x"}, "prefix: of the prompt of a causal model"),
        ({"answers": ["good", "bad"]}, "answers: of the prompt of a causal model"),
        ({"loss": RerankLossConfig(objective="pointwise_vocabulary")}, "pointwise_vocabulary is of causal models"),
        ({"tuning": "qlora", "precision": "bf16"}, "tuning: qlora holds the base of a causal model in 4 bits"),
        ({"query_max_length": 126}, "126 leave no room for a document in the 128 tokens"),
    ],
)
def test_what_an_encoder_has_not_is_refused(given: dict[str, Any], said: str, bert: Path) -> None:
    config = RerankConfig(model=str(bert), output_dir="run", train=[TrainData("rows.jsonl")], **given)
    with pytest.raises(ValueError, match=said):
        require_readable_pairs(config, load_reranker(config).pairs)
