"""The memory that ranks allocate for a model, compared with the estimate."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launches import BACKENDS, free_port, global_batches, join, usable
from ranks import run_ranks
from steps import Case, collate, prepared, take_step
from test_backends import prepare_folder
from torch import Tensor
from torch.distributed.tensor import DTensor

from nestling.backends import Backend
from nestling.training.memory import estimate


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor."""
    shard: Tensor = getattr(tensor, "ds_tensor", tensor)  # ZeRO-3's
    return shard.to_local() if isinstance(shard, DTensor) else shard


def size(tensors: Any) -> int:
    return sum(local(each).nbytes for each in tensors)


def optimizer_bytes(backend: Any, stage: int) -> int:
    """Bytes of AdamW's moments and of DeepSpeed's copies of the weights."""
    optimizer = backend.engine.optimizer.optimizer if stage else backend.optimizer
    moments = [each[name] for each in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    copies = {"fp32_partitioned_groups_flat": stage == 3, "single_partition_of_fp32_groups": stage in (1, 2)}
    names = [name for name, there in copies.items() if there]
    return size(moments) + sum(size(getattr(backend.engine.optimizer, name)) for name in names)


def measure(port: int, rank: int, folder: Path) -> None:
    join(rank, 2, port)
    for case in usable([Case(backend) for backend in BACKENDS]):
        backend: Backend = prepared(folder, case, 2, optim="adamw_torch_fused")
        take_step(backend, case, collate(folder, case, backend.model, rank, 2), global_batches()[0])
        stage = int(case.backend[-1]) if case.backend.startswith("zero") else 0
        found = estimate(backend.model, backend.state_fractions, chunk=0.0, kept=0.0)
        weights = size([*backend.model.parameters(), *backend.model.buffers()])
        figures = [found.weights, weights, found.optimizer, optimizer_bytes(backend, stage)]
        (folder / f"{case.backend}-{rank}.json").write_text(json.dumps(figures))


@pytest.mark.timeout(300)
def test_ranks_allocate_what_the_estimate_says(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    run_ranks(2, partial(measure, free_port()), tmp_path)
    for case in usable([Case(backend) for backend in BACKENDS]):
        for rank in range(2):
            weights, held, optimizer, state = json.loads((tmp_path / f"{case.backend}-{rank}.json").read_text())
            assert held == pytest.approx(weights, rel=1e-3), case  # shards are padded
            assert state == pytest.approx(optimizer, rel=1e-3), case
