"""Requests to one server, several at a time: connections that stay open, retries, latencies and tokens.

A request is retried after a lost connection, a timeout, a response that is no JSON, and status 408, 409, 425, 429 and
5xx: after the time in Retry-After if that is at most two minutes, otherwise after half a second, doubled with each
retry up to eight seconds.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from nestling.http_client import GuardedClient
from nestling.serving.client import RefusedError, Server, UnansweredError, UnreadableError

T = TypeVar("T")
RETRIED = {408, 409, 425, 429, *range(500, 600)}
FIRST_WAIT, LONGEST_WAIT, LONGEST_WANTED = 0.5, 8.0, 120.0  # seconds


@dataclass(frozen=True)
class Request:
    """A request.

    Args:
        path: Path of the endpoint.
        body: The JSON body.
        texts: How many texts (or pairs) it asks about.
        rows: How many rows of a file its answer fills.
        take: Reads the decoded response; raises ValueError for an unexpected one.
    """

    path: str
    body: dict[str, Any]
    texts: int
    rows: int
    take: Callable[[Any], None]


@dataclass
class Traffic:
    """What some requests took.

    Args:
        what: What was asked for.
        seconds: From the first request to the last answer.
        latencies: Of each request that was answered, in seconds, without those that were retried.
        texts: Texts (or pairs) that were answered.
        tokens: Tokens that the server says it has read; 0 if it does not say.
        retries: Requests that were sent again.
    """

    what: str
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0
    retries: int = 0

    def figures(self) -> dict[str, Any]:
        """Requests, texts, percentiles of the latency in milliseconds, and rates."""
        times = 1000 * np.array(self.latencies or [np.nan])
        percentiles = {f"p{each}_ms": float(np.percentile(times, each)) for each in (50, 95, 99)}
        rate = self.texts / max(self.seconds, 1e-9)
        counts = {"requests": len(self.latencies), "texts": self.texts, "tokens": self.tokens, "retries": self.retries}
        return {"what": self.what, **counts, "seconds": self.seconds, **percentiles, "texts_per_second": rate}


def dispatch(
    server: Server, requests: Iterable[Request], what: str, *, total: int, done: int, concurrency: int, retries: int
) -> Traffic:
    """Send requests, `concurrency` at a time, and have each answer taken; a bar shows rows and remaining time.

    Args:
        server: The server.
        requests: The requests; read as they are sent.
        what: Name of the bar and of the traffic.
        total: Rows of the bar, with those done before.
        done: Rows done before.
        concurrency: Requests under way at once.
        retries: How often a request is sent again.

    Raises:
        ValueError: A request was refused, or not answered after all retries.
    """
    traffic = Traffic(what)
    with tqdm(total=total, initial=done, desc=what, disable=not sys.stderr.isatty()) as bar:

        async def work(http: GuardedClient, waiting: Iterator[Request]) -> None:
            for request in waiting:
                request.take(await answered(server, http, request, traffic, retries))
                traffic.texts += request.texts
                bar.update(request.rows)

        async def run() -> None:
            waiting = iter(requests)
            async with server.open() as http, asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work(http, waiting))

        started = time.perf_counter()
        try:
            asyncio.run(run())
        except BaseExceptionGroup as group:  # errors of tasks that failed at the same time
            raise group.exceptions[0] from None
        traffic.seconds = time.perf_counter() - started
    return traffic


async def answered(server: Server, http: GuardedClient, request: Request, traffic: Traffic, retries: int) -> Any:
    """The decoded response to a request, after as many retries as it takes; counted in `traffic`."""
    for attempt in range(retries + 1):
        started = time.perf_counter()
        try:
            answer = await server.send(http, "POST", request.path, request.body)
        except (RefusedError, UnansweredError, UnreadableError) as error:
            pause = pause_after(error, attempt)
            if pause is None or attempt == retries:
                raise
            traffic.retries += 1
            await asyncio.sleep(pause)
        else:
            traffic.latencies.append(time.perf_counter() - started)
            traffic.tokens += tokens_of(answer)
            return answer
    raise AssertionError("not reached")


def patiently(ask: Callable[[], T], retries: int) -> T:
    """What a function returns that sends requests, called again, as often as `retries`, where the server says "later".

    It is not where nothing answers: before the first answer the address is wrong more often than a connection is lost.
    """
    for attempt in range(retries + 1):
        try:
            return ask()
        except RefusedError as error:
            pause = pause_after(error, attempt)
            if pause is None or attempt == retries:
                raise
            time.sleep(pause)
    raise AssertionError("not reached")


def pause_after(error: RefusedError | UnansweredError | UnreadableError, attempt: int) -> float | None:
    """Seconds to wait before a request is sent again; None if that would be of no use."""
    wanted = None
    if isinstance(error, RefusedError):
        if error.status not in RETRIED:
            return None
        wanted = error.retry_after
    if wanted is not None:
        return wanted if wanted <= LONGEST_WANTED else None
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.0))


def tokens_of(answer: Any) -> int:
    """The tokens that a response says its texts had; 0 if it says nothing."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    tokens = usage.get("total_tokens", usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0
