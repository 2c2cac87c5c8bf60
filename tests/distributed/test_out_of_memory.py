"""One of several ranks runs out of memory: all finish the step, save the steps before it, and can resume from there."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import free_port, global_batches, join, usable
from ranks import ROOT, run_ranks, run_recipe
from steps import BUDGETS, Case, collate, loss_config, prepared, recipe_loss, save, take_step
from test_backends import prepare_folder

from nestling.backends import Backend
from nestling.distributed.ranks import sum_over_ranks
from recipes.runs import arguments, losses, write_data
from retried import embed_retry, embed_step

CASES = [Case("ddp"), Case("ddp", "all"), Case("zero1", "some"), Case("zero2")]


def failing(function: Callable[..., Any], call: int, *, spare_last: bool = False) -> Callable[..., Any]:
    """A function that runs out of memory in its n-th call, counted from 0."""
    calls = iter(range(1000))

    def fail(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call and not (spare_last and named["last"]):
            raise torch.OutOfMemoryError("a full device")
        return function(*arguments, **named)

    return fail


def broken_step(backend: Backend, case: Case, batch: Any, place: str, rank: int) -> float:
    """How many ranks ran out of memory in a step that one of them cannot finish."""
    chunks = len(batch.tokens.chunks)
    assert chunks > 1
    owner: Any = backend if place == "backward" else backend.model
    name = "backward" if place == "backward" else "forward"
    original = getattr(owner, name)
    if rank == 1:
        call = {"first pass": chunks - 1, "second pass": chunks, "backward": 0}[place]
        setattr(owner, name, failing(original, call, spare_last=place == "backward"))
    retry = embed_retry(backend, print)
    loss = embed_step(retry, batch.tokens, lambda each: recipe_loss(each, batch, loss_config(case)), BUDGETS[case.kept])
    assert loss.isfinite()
    setattr(owner, name, original)
    return sum_over_ranks([retry.ran_out], torch.device("cpu"))[0]


def run_out(port: int, rank: int, folder: Path) -> None:
    """The weights after three steps, and after a third step that failed, a checkpoint, and the third step again."""
    join(rank, 2, port)
    for case in usable(CASES):
        backend = prepared(folder, case, 2, optim="adamw_torch_fused")
        collator = collate(folder, case, backend.model, rank, 2)
        *first, last = global_batches()
        for indices in global_batches():
            take_step(backend, case, collator, indices)
        uninterrupted = {name: each.detach().clone() for name, each in backend.tensors().items()}
        for place in ("first pass", "second pass", "backward"):
            if place == "second pass" and case.kept != "none":
                continue
            backend = prepared(folder, case, 2, optim="adamw_torch_fused")
            for indices in first:
                take_step(backend, case, collator, indices)
            assert broken_step(backend, case, collator[last], place, rank) == 1
            backend.zero_grad()
            save(backend, folder / f"{case}-{place}", rank)
            again = prepared(folder, case, 2, optim="adamw_torch_fused")
            again.restore(folder / f"{case}-{place}" / "step-1")
            take_step(again, case, collator, last)
            if rank == 0:
                torch.save((uninterrupted, again.tensors()), folder / f"{case}-{place}.pt")


@pytest.mark.timeout(300)
def test_ranks_finish_the_step_together_and_resume_before_it(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    run_ranks(2, partial(run_out, free_port()), tmp_path)
    files = list(tmp_path.glob("*.pt"))
    assert len(files) >= len(usable(CASES)) * 2
    for file in files:
        uninterrupted, again = torch.load(file)
        for name, each in uninterrupted.items():
            assert torch.equal(again[name], each), (file.name, name)


@pytest.mark.timeout(300)
def test_the_recipe_saves_gives_advice_and_resumes(qwen3: Path, tmp_path: Path) -> None:
    data, run, uninterrupted = write_data(tmp_path), tmp_path / "run", tmp_path / "uninterrupted"
    more = {"max_steps": 5, "save_steps": 100, "activation_memory": 0, "lora.dropout": 0.0}
    broken = arguments(qwen3, data, run, **more)
    broken[0] = str(ROOT / "tests" / "distributed" / "small_device.py")
    result = run_recipe(*broken, ranks=2, check=False)
    assert result.returncode != 0
    message = (
        f"error: a rank ran out of memory in step 4; saved {run}/checkpoints/step-3; continue with --resume true and "
    )
    assert f"{message}--chunk_tokens 32, or with a lower activation_memory" in result.stderr, result.stderr
    assert json.loads((run / "checkpoints" / "step-3" / "state.json").read_text())["step"] == 3
    run_recipe(*arguments(qwen3, data, run, **more | {"chunk_tokens": 32}), "--resume=true", ranks=2)
    run_recipe(*arguments(qwen3, data, uninterrupted, **more), ranks=2)
    assert sorted(losses(run)) == list(range(1, 6))
    for step, expected in losses(uninterrupted).items():
        assert losses(run)[step] == pytest.approx(expected, rel=1e-4), step


def test_one_process_that_cannot_take_the_step_saves_those_before(bert: Path, tmp_path: Path) -> None:
    data, run = write_data(tmp_path), tmp_path / "run"
    command = arguments(bert, data, run, max_steps=5, save_steps=100)
    command[0] = str(ROOT / "tests" / "distributed" / "small_device.py")
    result = run_recipe(*command, check=False)
    assert result.returncode == 2, result.stderr
    saved = run / "checkpoints" / "step-3"
    assert f"cannot be split further; saved {saved}; continue with --resume true and" in result.stderr, result.stderr
    assert json.loads((saved / "state.json").read_text())["step"] == 3
