"""Every backend, on real ranks, takes the steps of one process on the global batch, without a factor of W."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from launches import (
    BACKENDS,
    Weights,
    assert_same_update,
    flat,
    free_port,
    global_batches,
    join,
    require_deepspeed,
    usable,
)
from ranks import run_ranks
from steps import Case, collate, prepared, save, take_step, train_on_ranks, train_plainly, write_data
from torch.profiler import ProfilerActivity, profile

from nestling.backends.zero import Zero
from tiny import tiny_qwen3
from tiny_modules import tiny_stella

# Every value of each setting with every backend, and most pairs of values; the full product is marked slow.
PAIRWISE = [
    Case("ddp", "none", "full", "contrastive", 0.5),
    Case("ddp", "some", "lora", "distilled", 0.0),
    Case("ddp", "all", "full", "graded", 0.0),
    Case("zero1", "none", "lora", "contrastive", 0.0),
    Case("zero1", "some", "full", "distilled", 0.5),
    Case("zero1", "all", "full", "contrastive", 0.0, full_gradients=False),
    Case("zero2", "none", "full", "distilled", 0.0),
    Case("zero2", "some", "full", "graded", 0.5),
    Case("zero2", "all", "lora", "contrastive", 0.5),
    Case("zero2", "some", "full", "contrastive", 0.0, full_gradients=False),
    Case("zero3", "none", "full", "contrastive", 0.5),
    Case("zero3", "some", "lora", "distilled", 0.0),
    Case("zero3", "all", "full", "graded", 0.0),
    Case("zero3", "some", "full", "distilled", 0.0, full_gradients=False),
    Case("fsdp", "none", "lora", "distilled", 0.5),
    Case("fsdp", "some", "full", "contrastive", 0.5),
    Case("fsdp", "all", "full", "graded", 0.0),
    Case("fsdp", "some", "lora", "contrastive", 0.0, full_gradients=False),
    Case("ddp", "some", "lora", "contrastive", 0.5, head=True),
    Case("zero3", "some", "lora", "contrastive", 0.5, head=True),
    Case("fsdp", "some", "full", "contrastive", 0.5, head=True),
]
PRODUCT = [
    Case(backend, kept, tuning, kind, clip, full_gradients)
    for backend, kept, tuning, kind, clip, full_gradients in product(
        BACKENDS,
        ("none", "some", "all"),
        ("full", "lora"),
        ("contrastive", "distilled", "graded"),
        (0.0, 0.5),
        (True, False),
    )
    if full_gradients or backend != "ddp"
]


def on_a_rank(cases: Sequence[Case], world: int, port: int, rank: int, folder: Path) -> None:
    join(rank, world, port)
    for case in cases:
        weights = train_on_ranks(folder, case, rank, world)
        if rank == 0:
            torch.save(weights, folder / f"{world}-{case}.pt")


def prepare_folder(folder: Path) -> None:
    for name, build in (("model", tiny_qwen3), ("headed", tiny_stella)):
        (folder / name).mkdir()
        build(folder / name)
    write_data(folder)


def trained(folder: Path, cases: Sequence[Case], world: int) -> Path:
    """A folder with the weights of all cases, trained on `world` ranks."""
    prepare_folder(folder)
    run_ranks(world, partial(on_a_rank, usable(cases), world, free_port()), folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("two"), PAIRWISE, 2)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("four"), PAIRWISE, 4)


@pytest.fixture(scope="module")
def full_product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("product"), PRODUCT, 2)


def assert_trained_as_one(folder: Path, case: Case, world: int) -> None:
    before, expected = train_plainly(folder, case)
    assert_same_update(before, expected, torch.load(folder / f"{world}-{case}.pt"))


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_two_ranks_take_the_steps_of_one(case: Case, two_ranks: Path) -> None:
    require_deepspeed(case)
    assert_trained_as_one(two_ranks, case, 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_four_ranks_take_the_steps_of_one(case: Case, four_ranks: Path) -> None:
    require_deepspeed(case)
    assert_trained_as_one(four_ranks, case, 4)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("case", PRODUCT, ids=str)
def test_every_combination_takes_the_steps_of_one(case: Case, full_product: Path) -> None:
    require_deepspeed(case)
    assert_trained_as_one(full_product, case, 2)


def collectives(port: int, rank: int, folder: Path) -> None:
    """Write how often each collective ran in a step, by torch's name."""
    join(rank, 2, port)
    for case in usable([Case("ddp", "some"), Case("zero1", "some"), Case("zero2", "some")]):
        backend = prepared(folder, case, 2)
        collator = collate(folder, case, backend.model, rank, 2)
        for indices in global_batches():  # the last one is kept: DDP arranges its buckets during the first two
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                take_step(backend, case, collator, indices)
        if rank == 0:
            counts = {each.key: each.count for each in profiler.key_averages() if each.key.startswith("c10d::")}
            (folder / f"{case.backend}.json").write_text(json.dumps(counts))


def spoiled(port: int, rank: int, folder: Path) -> None:
    """ZeRO-2 with only `engine.backward` for every chunk, as most code uses it."""
    join(rank, 2, port)
    case = Case("zero2")
    backend = prepared(folder, case, 2)
    assert isinstance(backend, Zero)
    backend.accumulation = nullcontext  # type: ignore[method-assign]
    collator = collate(folder, case, backend.model, rank, 2)
    for indices in global_batches():
        take_step(backend, case, collator, indices)
    if rank == 0:
        torch.save(backend.tensors(), folder / f"2-{case}.pt")


def test_a_step_gathers_scatters_and_reduces_once(tmp_path: Path) -> None:
    """Whatever the chunks, columns and dims: embeddings, their gradients, and the gradients of the weights.

    ZeRO gathers the updated weights besides, and sums the gradient's norm and whether it is finite.
    """
    prepare_folder(tmp_path)
    run_ranks(2, partial(collectives, free_port()), tmp_path)
    gather, scatter, reduce = "c10d::_allgather_base_", "c10d::_reduce_scatter_base_", "c10d::allreduce_"
    zero = {gather: 2, scatter: 1, reduce: 3}
    expected = {"ddp": {gather: 1, scatter: 1, reduce: 1}, "zero1": zero, "zero2": zero}
    for case in usable([Case("ddp"), Case("zero1"), Case("zero2")]):
        assert json.loads((tmp_path / f"{case.backend}.json").read_text()) == expected[case.backend]


def test_zero_without_the_accumulation_is_silently_wrong(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="the deepspeed extra is not installed")
    prepare_folder(tmp_path)
    run_ranks(2, partial(spoiled, free_port()), tmp_path)
    before, expected = train_plainly(tmp_path, Case("zero2"))
    found: Weights = torch.load(tmp_path / "2-zero2-none-full-contrastive.pt")
    update, wanted = (flat({name: each[name] - before[name] for name in expected}) for each in (found, expected))
    assert ((update - wanted).norm() / wanted.norm()).item() > 0.5


def resumed(port: int, rank: int, folder: Path) -> None:
    """The weights after three steps, without interruption and resumed from a checkpoint after the second."""
    join(rank, 2, port)
    for case in usable([Case(name, "some", tuning) for name in BACKENDS for tuning in ("full", "lora")]):
        backend = prepared(folder, case, 2, optim="adamw_torch_fused")
        collator = collate(folder, case, backend.model, rank, 2)
        *first, last = global_batches()
        for indices in first:
            take_step(backend, case, collator, indices)
        save(backend, folder / str(case), rank)
        take_step(backend, case, collator, last)
        uninterrupted = {name: each.detach().clone() for name, each in backend.tensors().items()}
        again = prepared(folder, case, 2, optim="adamw_torch_fused")
        again.restore(folder / str(case) / "step-1")
        take_step(again, case, collator, last)
        found = again.tensors()
        if rank == 0:
            torch.save((uninterrupted, found), folder / f"{case}.pt")


def test_a_resumed_run_is_bit_for_bit_the_same_on_every_backend(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    run_ranks(2, partial(resumed, free_port()), tmp_path)
    for case in usable([Case(name, "some", tuning) for name in BACKENDS for tuning in ("full", "lora")]):
        uninterrupted, again = torch.load(tmp_path / f"{case}.pt")
        assert uninterrupted.keys() == again.keys()
        for name, each in uninterrupted.items():
            assert torch.equal(again[name], each), (case, name)


ELASTIC = [Case("ddp", "some"), Case("fsdp", "some"), Case("fsdp", "some", "lora")]


def last_step(folder: Path, case: Case, rank: int, world: int, checkpoint: Path | None) -> None:
    """Write the weights before and after the third step, to which two steps lead, or another run's checkpoint."""
    backend = prepared(folder, case, world, optim="adamw_torch_fused")
    collator = collate(folder, case, backend.model, rank, world)
    *first, last = global_batches()
    if checkpoint is None:
        for indices in first:
            take_step(backend, case, collator, indices)
        save(backend, folder / f"{case}-{world}", rank)
    else:
        backend.restore(checkpoint / "step-1")
    before = {name: each.detach().clone() for name, each in backend.tensors().items()}
    take_step(backend, case, collator, last)
    after = backend.tensors()
    if rank == 0:
        torch.save(
            (before, after), folder / f"{case}-{world}-{'uninterrupted' if checkpoint is None else 'resumed'}.pt"
        )


def go_on(data: Path, world: int, other: int | None, port: int, rank: int, _: Path) -> None:
    """Runs of `world` ranks: from the checkpoints of `other` ranks, and, unless these exist, their own."""
    join(rank, world, port)
    for case in ELASTIC:
        if not (data / f"{case}-{world}").exists():
            last_step(data, case, rank, world, None)
        if other is not None:
            last_step(data, case, rank, world, data / f"{case}-{other}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    """With unsharded optimizer states, from two ranks to four and back; with AdamW, whose moments would show errors."""
    data = tmp_path / "data"
    data.mkdir()
    prepare_folder(data)
    for turn, (world, other) in enumerate([(2, None), (4, 2), (2, 4)]):
        meeting = tmp_path / str(turn)
        meeting.mkdir()
        run_ranks(world, partial(go_on, data, world, other, free_port()), meeting)
    for case in ELASTIC:
        for world, other in ((4, 2), (2, 4)):
            before, expected = torch.load(data / f"{case}-{other}-uninterrupted.pt")
            start, found = torch.load(data / f"{case}-{world}-resumed.pt")
            assert all(torch.equal(start[name], each) for name, each in before.items())
            update, wanted = (flat({name: each[name] - before[name] for name in before}) for each in (found, expected))
            assert wanted.norm() > 1e-3
            assert ((update - wanted).norm() / wanted.norm()).item() < 1e-5, (case, world)
