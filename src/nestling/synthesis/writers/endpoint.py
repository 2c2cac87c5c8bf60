"""A model behind a server with OpenAI's chat API, through OpenAI's own client.

The client sends a request again after a timeout, a lost connection, a response that is no chat completion, and status
408, 409, 429 and 5xx: after what Retry-After says if that is at most two minutes (and not at all if it is more), else
after half a second, twice as long each time up to eight. Repeated requests pass the same limiter as first ones, since
both are counted where they leave.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from nestling.synthesis.conversation import NoAnswer, Question, Reply
from nestling.synthesis.writers import Talk

# The key, the account or the name of the model is wrong: no document would be answered.
HOPELESS = {
    401: "check the key, endpoint.api_key_env",
    402: "check the account",
    403: "check the key and the account",
    404: "check endpoint.url and the name of the model",
}
# A server that answers none of so many questions in a row, or of those under way, is taken for gone.
PATIENCE = 5


@dataclass
class Endpoint:
    """A served model; all requests share the connection's limits.

    Args:
        url: Base URL.
        model: What the server calls the model.
        key: The key; None for servers that want none.
        concurrency: Requests at a time.
        requests_per_minute: No more than these, evenly spaced; None for no limit.
        timeout: Seconds that the server may be silent.
        retries: How often a request is sent again.
        body: Fields of every request's body besides model, messages and seed; None leaves one out.
    """

    url: str
    model: str
    key: str | None = field(repr=False)
    concurrency: int
    requests_per_minute: float | None
    timeout: float
    retries: int
    body: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.requests = 0
        self._unanswered = 0  # questions in a row
        self._limiter: AsyncLimiter | None = None

    def hold(self, talks: Iterator[Talk], done: Callable[[], None]) -> None:
        """See `Writer`. Raises ValueError for status 401 to 404, and when the server seems to be gone."""
        try:
            asyncio.run(self._hold(talks, done))
        except BaseExceptionGroup as group:  # of the tasks that failed at the same time
            raise group.exceptions[0] from None

    async def _hold(self, talks: Iterator[Talk], done: Callable[[], None]) -> None:
        if self.requests_per_minute is not None:
            self._limiter = AsyncLimiter(1, 60 / self.requests_per_minute)  # a bucket of one never bursts
        http = DefaultAsyncHttpxClient(
            timeout=self.timeout, event_hooks={"request": [self._leave], "response": [arrive]}
        )
        client = AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=http,
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(self._hold_some(client, talks, done))

    async def _leave(self, request: object) -> None:
        if self._limiter is not None:
            await self._limiter.acquire()
        self.requests += 1

    async def _hold_some(self, client: AsyncOpenAI, talks: Iterator[Talk], done: Callable[[], None]) -> None:
        for talk in talks:
            await self._hold_one(client, talk)
            done()

    async def _hold_one(self, client: AsyncOpenAI, talk: Talk) -> None:
        try:
            question = next(talk)
            while True:
                try:
                    reply = await self._ask(client, question)
                except NoAnswer as error:
                    question = talk.throw(error)
                else:
                    question = talk.send(reply)
        except StopIteration:
            return

    async def _ask(self, client: AsyncOpenAI, question: Question) -> Reply:
        body = {"seed": question.seed, **self.body}
        kept = {name: value for name, value in body.items() if value is not None}
        chat: Any = client.chat.completions.with_raw_response
        try:
            response = await chat.create(model=self.model, messages=question.messages, extra_body=kept)
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APITimeoutError:
            raise self._no_answer("timeout", f"{self.timeout:g} seconds of silence") from None
        except openai.APIConnectionError as error:
            kind = "no completion" if isinstance(error.__cause__, httpx.DecodingError) else "no connection"
            raise self._no_answer(kind, str(error.__cause__ or error)) from None
        self._unanswered = 0
        return read_completion(response.text)

    def _refused(self, error: openai.APIStatusError) -> Exception:
        advice = HOPELESS.get(error.status_code)
        if advice is not None:
            return ValueError(f"{self.url}: {self._without_key(error.message)}; {advice}")
        return self._no_answer(f"status {error.status_code}", self._without_key(error.message))

    def _no_answer(self, kind: str, detail: str) -> Exception:
        self._unanswered += 1
        if self._unanswered < max(PATIENCE, self.concurrency):
            return NoAnswer(kind)
        return ValueError(
            f"{self.url}: {self._unanswered} questions in a row got no answer, the last for this reason: "
            f"{kind}: {detail}"
        )

    def _without_key(self, text: str) -> str:
        return text if self.key is None else text.replace(self.key, "***")


async def arrive(response: httpx.Response) -> None:
    """Make a success that holds no chat completion an error like a lost connection, so that it is asked for again."""
    if response.is_success:
        await response.aread()
        try:
            read_completion(response.text)
        except ValueError as error:
            raise httpx.DecodingError(str(error)) from None


def read_completion(text: str) -> Reply:
    """The reply in a response's body. Raises ValueError if it is broken, or something else than a chat completion."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        said, finish = join_parts(choice["message"]["content"]), choice.get("finish_reason")
        usage = body.get("usage") or {}
        return Reply(said, finish, *(counted(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"expected a chat completion, got {text[:100]!r}") from None


def join_parts(content: Any) -> str:
    """What a message says: a text, nothing, or parts, as some servers have them, of which thoughts are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def counted(tokens: Any) -> int | None:
    """A count; None for what is none, which some servers send."""
    return tokens if isinstance(tokens, int) else None
