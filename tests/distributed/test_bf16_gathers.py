"""NESTLING_BF16_GATHERS: FSDP2 gathers half the bytes, and trains as without it but for rounding."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import flat, free_port, global_batches, join, launch
from ranks import run_ranks
from steps import Case, collate, take_step, write_data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.gpu import BF16_GATHERS
from nestling.models.embedder import Embedder
from tiny import tiny_qwen3

CASE = Case("fsdp", "some")


class Gathers(TorchDispatchMode):
    """The dtypes and bytes of what this rank gives to gathers of weights, which are those of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "c10d::_allgather_base_" and args[1].ndim == 1:
            self.bytes[args[1].dtype] = self.bytes.get(args[1].dtype, 0) + args[1].numel() * args[1].element_size()
        return func(*args, **(kwargs or {}))


def load(folder: Path, precision: torch.dtype) -> Embedder:
    return Embedder.from_pretrained(folder / "model", dtype=torch.float32, precision=precision).train()


RUNS = {"exact": (torch.float32, "1"), "plain": (torch.bfloat16, "0"), "halved": (torch.bfloat16, "1")}


def train(folder: Path, port: int, rank: int, _: Path) -> None:
    """Write the bytes gathered, and the weights before and after a step, of each run."""
    join(rank, 2, port)
    with pytest.MonkeyPatch.context() as patch:
        for name, (precision, switch) in RUNS.items():
            patch.setenv(BF16_GATHERS, switch)
            backend = launch(CASE, 2, partial(load, folder, precision))
            before = {each: tensor.clone() for each, tensor in backend.tensors().items()}
            with Gathers() as gathers:
                take_step(backend, CASE, collate(folder, CASE, backend.model, rank, 2), global_batches()[0])
            after = backend.tensors()
            if rank == 0:
                torch.save((gathers.bytes, before, after), folder / f"{name}.pt")


def test_weights_are_gathered_in_half_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    tiny_qwen3(tmp_path / "model")
    write_data(tmp_path)
    meeting = tmp_path / "ranks"
    meeting.mkdir()
    run_ranks(2, partial(train, tmp_path, free_port()), meeting)
    gathered: dict[str, dict[torch.dtype, int]] = {}
    updates: dict[str, Tensor] = {}
    for name in RUNS:
        gathered[name], before, after = torch.load(tmp_path / f"{name}.pt")
        updates[name] = flat({each: after[each] - before[each] for each in before})
        assert {each.dtype for each in after.values()} == {torch.float32}
    assert gathered["exact"] == gathered["plain"] == {torch.float32: 2 * gathered["halved"][torch.bfloat16]}
    errors = {name: (each - updates["exact"]).norm().item() for name, each in updates.items()}
    assert 0 < errors["halved"] < 1.5 * errors["plain"]
    assert errors["halved"] < 0.05 * updates["exact"].norm().item()
