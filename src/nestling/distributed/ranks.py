"""Actions on one or all ranks with errors on all, and values agreed on by all ranks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from nestling.disk_errors import WriteError, find_write_error

T = TypeVar("T")

# While rank 0 converts data or exports, the others wait for longer than a collective of training may ever take.
LONGEST_WAIT = timedelta(hours=12)
_waiting: dist.ProcessGroup | None = None


def open_waiting_group() -> None:
    """Give waits on other ranks a group of their own, over gloo; all ranks call it once, after they have met.

    Without it waits have the timeout of the group that trains.
    """
    global _waiting
    _waiting = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """A block that rank 0 runs first, to fill a cache for instance, and the others once it is done or has failed."""
    rank, world = rank_and_world()
    if rank > 0:
        dist.barrier(group=_waiting)
    try:
        yield
    finally:
        if rank == 0 and world > 1:
            dist.barrier(group=_waiting)


def on_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 only, and return its value, which must be picklable, on every rank.

    All ranks wait for rank 0. An error of rank 0 is raised on every rank, so that none waits forever.
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
            outcome = [picklable(error)]
    dist.broadcast_object_list(outcome, src=0, group=_waiting)
    value = outcome[0]
    if isinstance(value, Exception):
        raise failure or value
    return value  # type: ignore[return-value]


def on_every_rank(action: Callable[[], None]) -> None:
    """Run `action` on every rank, and wait until all are done.

    An error on any rank is raised on all of them; a rank that has an error of its own raises that. An action with
    collectives must fail on all ranks or none, since the others would wait for a rank that failed.
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
        dist.all_gather_object(failures, None if failure is None else picklable(failure), group=_waiting)
    first = failure or next((each for each in failures if each is not None), None)
    if first is not None:
        raise first


def picklable(error: Exception) -> Exception:
    """An error that can be pickled: a WriteError if that is behind it, else of the closest built-in class."""
    unwritten = find_write_error(error)
    if unwritten is not None:
        return WriteError(unwritten.errno, unwritten.strerror)
    kind = next(
        kind for kind in (FileExistsError, OSError, ValueError, RuntimeError, Exception) if isinstance(error, kind)
    )
    return kind(str(error))


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is set on any rank. Every rank must call it, with a `device` that the process group supports."""
    if rank_and_world()[1] == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum each of several numbers over all ranks, in float64 and one collective."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]
