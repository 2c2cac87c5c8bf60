"""Optimizers with moments of 8 bits on ranks: equal weights, and a checkpoint that resumes to the bit."""

from functools import partial
from pathlib import Path

import pytest
import torch
from launches import Weights, free_port, global_batches, join
from ranks import run_ranks
from steps import Case, collate, prepared, save, take_step
from test_backends import prepare_folder

from nestling.backends import Backend
from nestling.backends.optimizer import PACKAGES
from nestling.config.training import OptimName

CASES: list[tuple[str, OptimName]] = [
    ("ddp", "adamw_bnb_8bit"),
    ("ddp", "adamw_torch_8bit"),
]


def resume_on_a_rank(port: int, rank: int, folder: Path) -> None:
    """Two steps in one go, and the second one from a checkpoint after the first."""
    join(rank, 2, port)
    torch.compiler.set_stance("force_eager")  # torchao compiles its step, which takes seconds for each shape
    first, second, _ = global_batches()
    for kind, optim in CASES:
        case = Case(kind, "some")
        backend = prepared(folder, case, 2, optim=optim)
        collator = collate(folder, case, backend.model, rank, 2)
        take_step(backend, case, collator, first)
        save(backend, folder / f"{kind}-{optim}", rank)
        take_step(backend, case, collator, second)
        write(backend, folder, f"{kind}-{optim}-{rank}")
        backend = prepared(folder, case, 2, optim=optim)
        backend.restore(folder / f"{kind}-{optim}" / "step-1")
        take_step(backend, case, collate(folder, case, backend.model, rank, 2), second)
        write(backend, folder, f"{kind}-{optim}-{rank}-resumed")


def write(backend: Backend, folder: Path, name: str) -> None:
    torch.save({name: each.clone() for name, each in backend.tensors().items()}, folder / f"{name}.pt")


@pytest.mark.slow
def test_ranks_stay_equal_and_resume_to_the_bit(tmp_path: Path) -> None:
    for package in PACKAGES.values():
        pytest.importorskip(package, reason="the gpu extra is not installed")
    prepare_folder(tmp_path)
    run_ranks(2, partial(resume_on_a_rank, free_port()), tmp_path)

    def weights(name: str) -> Weights:
        found: Weights = torch.load(tmp_path / f"{name}.pt")
        return found

    for kind, optim in CASES:
        uninterrupted, resumed = weights(f"{kind}-{optim}-0"), weights(f"{kind}-{optim}-0-resumed")
        assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted), (kind, optim)
        dtypes = {each.dtype for each in uninterrupted.values() if each.is_floating_point()}
        assert dtypes == {torch.bfloat16 if optim == "adamw_torch_8bit" else torch.float32}
        if kind == "ddp":
            other = weights(f"{kind}-{optim}-1")
            assert all(torch.equal(uninterrupted[name], other[name]) for name in uninterrupted), optim
