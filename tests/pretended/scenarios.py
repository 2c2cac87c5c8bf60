"""The recipes and scripts on the pretended device, each a function of a folder with tiny models and data."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from nestling.batches.packing import AnyChunk
from nestling.models.embedder import Embedder
from pretended.commands import SHORT, finish, trained, trained_reranker
from pretended.kernel import varlen_kernel
from recipes import runs
from scripts import evaluate, merge, mine
from train import embed


def lora(place: Path) -> None:
    """LoRA, stopped by a signal in its first step and resumed, trains as on the CPU."""
    settings: dict[str, object] = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "dev": place / "dev"}
    expected = trained(place, "on-cpu", **settings, use_cpu="true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "seed_step", stopping(embed.seed_step, 0))
        run = trained(place, "lora", status=128 + signal.SIGTERM, **settings)
    assert sorted(runs.losses(run)) == [1]
    trained(place, "lora", **settings, resume="true")
    runs.assert_same_run(run, expected, loss=1e-4, weight=1e-4)


def stopping(seed_step: Callable[[int, int, int], None], at: int) -> Callable[[int, int, int], None]:
    def seed(seed: int, step: int, rank: int) -> None:
        seed_step(seed, step, rank)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    return seed


def full(place: Path) -> None:
    """All weights in bf16, layers recomputed, activations of no chunk kept, with dropout."""
    more = {"gradient_checkpointing_length": 0, "activation_memory": 0, "dropout": 0.1}
    run = trained(place, "full", tuning="full", precision="bf16", max_steps=2, save_steps=2, **more)
    assert sorted(runs.losses(run)) == [1, 2]


def packed(place: Path) -> None:
    """Packed texts in bf16, with the activations of all chunks kept."""
    with pytest.MonkeyPatch.context() as patch:
        calls = varlen_kernel(patch)
        trained(place, "packed", attn_implementation="varlen", precision="bf16", max_steps=1, activation_memory=1)
    assert calls, "the kernel of a GPU was not asked for"


def reranker(place: Path) -> None:
    """All weights of a reranker in bf16; its prompts share their beginnings, and its layers are recomputed."""
    with pytest.MonkeyPatch.context() as patch:
        calls = varlen_kernel(patch)
        trained_reranker(place, "rerank", tuning="full", gradient_checkpointing_length=0, max_steps=1)
    assert any(queries != keys for queries, keys in calls), "no prompts shared a beginning"


def evaluation(place: Path) -> None:
    """An embedder at all its dimensions and precisions, and the order that a reranker gives."""
    options = ("--data", place / "dev", "--split", "dev")
    model = place / "lora" / "final"
    said = finish(evaluate.main, "--model", model, *options, *SHORT, "--embedding_precision", "float32,int8,binary")
    assert "binary" in said
    finish(evaluate.main, "--model", model, "--reranker", place / "rerank" / "final", *options, *SHORT)


def mining(place: Path) -> None:
    """Hard negatives of two retrievers, with a judge."""
    AcceleratorState._reset_state(reset_partial_state=True)
    models = ("--retrievers", f"bm25,{place / 'lora' / 'final'}", "--judge", place / "rerank" / "final")
    rows = (place / "first.jsonl").read_text().splitlines(keepends=True)
    (place / "few.jsonl").write_text("".join(rows[:4]))
    finish(mine.main, *models, "--data", place / "few.jsonl", "--output", place / "mined.jsonl", *SHORT)
    assert "negatives" in (place / "mined.jsonl").read_text()


def merging(place: Path) -> None:
    """Two checkpoints of a run, measured on the device before one is written."""
    output = place / "merged"
    finish(merge.main, "--run", place / "lora", "--last", "2", "--output", output, "--dev", place / "dev")
    assert (output / "model.safetensors").exists()


def lora_reranker(place: Path) -> None:
    """A reranker's adapters, listwise, on prompts that are padded."""
    trained_reranker(place, "rerank-padded", attn_implementation="sdpa", **{"loss.objective": "listwise"})


def other_losses(place: Path) -> None:
    """Graded pairs, teacher scores and rows with negatives of their own, on a BERT with mean pooling."""
    graded = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 8} for i in range(8)]
    names = {"positives": ["positive"], "negatives": ["n", "m"], "positive_scores": [1], "negative_scores": [0.5, 0.1]}
    scored = [{"query": f"q {i}", **names, "positives": [f"p {i}"]} for i in range(8)]
    for name, rows in (("graded", graded), ("scored", scored)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"{place}/graded.jsonl,{place}/scored.jsonl"
    more = {"loss.distillation_weight": 0.5, "loss.score_margin": 0.1, "loss.terms": "query_document,query_query"}
    trained(place, "others", model="bert", tuning="full", train=data, max_steps=4, matryoshka_dims="48,16", **more)


def refresh(place: Path) -> None:
    """Hard negatives mined again during training."""
    trained(place, "refresh", max_steps=4, **{"refresh.steps": 2, "refresh.among": 4})


def dry_run(place: Path) -> None:
    """The longest batch in chunks of several sizes."""
    trained(place, "dry", dry_run="true")


def out_of_memory(place: Path) -> None:
    """A step that does not fit is repeated in smaller chunks."""
    with pytest.MonkeyPatch.context() as patch:
        forward, calls = Embedder.forward, iter(range(10**6))

        def failing(self: Embedder, chunk: AnyChunk, **more: Any) -> Tensor:
            if chunk.positions > 48 and torch.is_grad_enabled() and next(calls) == 4:
                raise torch.OutOfMemoryError("full")
            return forward(self, chunk, **more)

        patch.setattr(Embedder, "forward", failing)
        trained(place, "little-memory", max_steps=2, activation_memory=0)
