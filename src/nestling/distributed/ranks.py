"""What the ranks of a run do together: act once and fail together, agree on a flag."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 alone and return its value, which must pickle, on every rank.

    No rank goes on before rank 0 is done, and an error of rank 0 is raised on every rank, so that none waits for ever.
    """
    rank, world = rank_and_world()
    if world == 1:
        return action()
    outcome: list[T | Exception | None] = [None]
    failure: Exception | None = None
    if rank == 0:
        try:
            outcome = [action()]
        except Exception as error:
            failure = error
            outcome = [portable(error)]
    dist.broadcast_object_list(outcome, src=0)
    value = outcome[0]
    if isinstance(value, Exception):
        raise failure or value
    return value  # type: ignore[return-value]


def on_every_rank(action: Callable[[], None]) -> None:
    """Run `action`, which must not wait for other ranks after it has failed, on every rank; they go on together.

    An error of any rank is raised on all of them, a rank's own where it had one.
    """
    failure: Exception | None = None
    try:
        action()
    except Exception as error:
        failure = error
    _, world = rank_and_world()
    if world == 1:
        failures = [failure]
    else:
        failures = [None] * world
        dist.all_gather_object(failures, None if failure is None else portable(failure))
    first = failure or next((each for each in failures if each is not None), None)
    if first is not None:
        raise first


def portable(error: Exception) -> Exception:
    """An error of the same built-in kind that pickles."""
    kind = next(
        kind for kind in (FileExistsError, OSError, ValueError, RuntimeError, Exception) if isinstance(error, kind)
    )
    return kind(str(error))


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is set on any rank; every rank must call it. `device` is where the backend reduces."""
    if rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def rank_and_world() -> tuple[int, int]:
    """This process and how many there are; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum each of some numbers over all ranks, in one collective; float64."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]
