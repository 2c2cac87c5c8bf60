import importlib
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import run_ranks

from nestling.distributed import gathering
from nestling.distributed.gathering import gather_batch
from nestling.distributed.ranks import sum_over_ranks

COUNTS = [3, 0, 5]
D = 4


def global_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(6, D, generator=generator, dtype=torch.float64)
    documents = torch.randn(8, D, generator=generator, dtype=torch.float64)
    return queries, documents, torch.randn(6, 8, generator=generator, dtype=torch.float64)


def share_of_the_loss(
    queries: torch.Tensor, documents: torch.Tensor, weights: torch.Tensor, rows: slice
) -> torch.Tensor:
    return ((queries[rows] @ documents.T).tanh() * weights[rows]).sum() + (queries @ queries.T)[rows].sin().sum()


def gathered_gradients(rank: int, folder: Path) -> None:
    queries, documents, weights = global_batch()
    first = sum(COUNTS[:rank])
    mine = queries[2 * rank : 2 * rank + 2].clone().requires_grad_()
    own = documents[first : first + COUNTS[rank]].clone().requires_grad_()
    everyone, pool = gather_batch(mine, own, COUNTS)
    assert torch.equal(everyone, queries)
    assert torch.equal(pool, documents)
    loss = share_of_the_loss(everyone, pool, weights, slice(2 * rank, 2 * rank + 2))
    loss.backward()
    torch.save((mine.grad, own.grad, sum_over_ranks([loss.item(), 1.0], torch.device("cpu"))), folder / f"{rank}.pt")


def test_gathering_sums_the_gradients_of_all_ranks(tmp_path: Path) -> None:
    run_ranks(3, gathered_gradients, tmp_path)
    queries, documents, weights = (each.requires_grad_() for each in global_batch())
    loss = share_of_the_loss(queries, documents, weights, slice(0, 6))
    loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), queries.grad)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), documents.grad)
    for part in parts:
        torch.testing.assert_close(torch.tensor(part[2]), torch.tensor([loss.item(), 3.0]))


# Each under the names of all torch versions.
COLLECTIVES = {
    "all_gather_single": "gather",
    "all_gather_into_tensor": "gather",
    "all_gather": "gather",
    "reduce_scatter_single": "scatter",
    "reduce_scatter_tensor": "scatter",
    "all_reduce": "reduce",
    "broadcast": "broadcast",
}


def collectives_of_a_step(rank: int, folder: Path) -> None:
    calls: list[str] = []
    for name, kind in COLLECTIVES.items():
        original = getattr(dist, name, None)
        if original is not None:

            def counted(*arguments: object, _kind: str = kind, _original: object = original) -> object:
                calls.append(_kind)
                return _original(*arguments)  # type: ignore[operator]

            setattr(dist, name, counted)
    importlib.reload(gathering)  # which looks two of them up when it is imported
    mine = torch.randn(2, D, requires_grad=True)
    own = torch.randn(3, D, requires_grad=True)
    everyone, pool = gathering.gather_batch(mine, own, [3, 3])
    (everyone @ pool.T).sum().backward()
    (folder / f"{rank}.txt").write_text(" ".join(calls))


def test_a_step_gathers_once_and_scatters_once(tmp_path: Path) -> None:
    run_ranks(2, collectives_of_a_step, tmp_path)
    assert (tmp_path / "0.txt").read_text() == "gather scatter"
