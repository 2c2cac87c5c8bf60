"""A model behind a server with OpenAI's chat API, through OpenAI's own client.

The client retries after a timeout, a lost connection, a response that is no chat completion, and status 408, 409, 429
and 5xx: after the time in Retry-After if that is at most two minutes (longer times are not waited for), otherwise after
half a second, doubled with each retry up to eight seconds. Retries pass the same rate limiter as first requests.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI

from nestling.api_keys import quoted, usable_key
from nestling.http_client import GuardedClient, RefusedRedirectError
from nestling.synthesis.chat_models import RecordedConversation
from nestling.synthesis.conversation import ChatRequest, Completion, NoAnswer

# Statuses that every request would get, since the key, the account or the name of the model is wrong.
FATAL_STATUSES = {
    401: "check the key, endpoint.api_key_env",
    402: "check the account",
    403: "check the key and the account",
    404: "check endpoint.url and the name of the model",
}
# After so many requests in a row (at least one per connection) without a completion, the server is considered down.
MAX_UNANSWERED = 5


@dataclass
class Endpoint:
    """A served model; all requests share one rate limiter.

    Args:
        url: Base URL.
        model: Name of the model at the server.
        key: API key; None for servers without keys.
        concurrency: Number of simultaneous requests.
        requests_per_minute: Maximum rate, evenly spaced; None for no limit.
        timeout: Seconds after which a request without a whole answer fails.
        retries: Maximum number of retries of a request.
        body: Fields of the body of every request besides model, messages and seed; a field with value None is left out.
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
        self.key = usable_key(self.key, self.url) if self.key else None
        self.requests = 0
        self._unanswered = 0  # requests in a row
        self._limiter: AsyncLimiter | None = None

    def run_conversations(self, conversations: Iterator[RecordedConversation], done: Callable[[], None]) -> None:
        """See `ChatModel`. Raises ValueError for status 401 to 404, and when the server seems to be down."""
        try:
            asyncio.run(self._run_all(conversations, done))
        except BaseExceptionGroup as group:  # errors of tasks that failed at the same time
            raise group.exceptions[0] from None

    async def _run_all(self, conversations: Iterator[RecordedConversation], done: Callable[[], None]) -> None:
        if self.requests_per_minute is not None:
            self._limiter = AsyncLimiter(1, 60 / self.requests_per_minute)  # a bucket of size 1 allows no bursts
        http: Any = ChatClient(self.timeout, self._before_request)  # OpenAI's types name httpx2, it takes httpx too
        client = AsyncOpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=http,
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(self._run_worker(client, conversations, done))

    async def _before_request(self) -> None:
        if self._limiter is not None:
            await self._limiter.acquire()
        self.requests += 1

    async def _run_worker(
        self, client: AsyncOpenAI, conversations: Iterator[RecordedConversation], done: Callable[[], None]
    ) -> None:
        for conversation in conversations:
            await self._run_conversation(client, conversation)
            done()

    async def _run_conversation(self, client: AsyncOpenAI, conversation: RecordedConversation) -> None:
        try:
            chat_request = next(conversation)
            while True:
                try:
                    completion = await self._ask(client, chat_request)
                except NoAnswer as error:
                    chat_request = conversation.throw(error)
                else:
                    chat_request = conversation.send(completion)
        except StopIteration:
            return

    async def _ask(self, client: AsyncOpenAI, chat_request: ChatRequest) -> Completion:
        body = {"seed": chat_request.seed, **self.body}
        kept = {name: value for name, value in body.items() if value is not None}
        chat: Any = client.chat.completions.with_raw_response
        try:
            response = await chat.create(model=self.model, messages=chat_request.messages, extra_body=kept)
        except openai.APIStatusError as error:
            raise self._refused(error) from None
        except openai.APITimeoutError:
            raise self._no_answer("timeout", f"no whole answer within {self.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            kind = "no completion" if isinstance(error.__cause__, httpx.DecodingError) else "no connection"
            raise self._no_answer(kind, str(error.__cause__ or error)) from None
        except openai.OpenAIError as error:
            raise ValueError(f"{self.url}: {quoted(str(error), self.key)}") from None
        self._unanswered = 0
        return read_completion(response.text)

    def _refused(self, error: openai.APIStatusError) -> Exception:
        advice = FATAL_STATUSES.get(error.status_code)
        if advice is not None:
            return ValueError(f"{self.url}: {quoted(error.message, self.key)}; {advice}")
        return self._no_answer(f"status {error.status_code}", error.message)

    def _no_answer(self, kind: str, detail: str) -> Exception:
        self._unanswered += 1
        if self._unanswered < max(MAX_UNANSWERED, self.concurrency):
            return NoAnswer(kind)
        return ValueError(
            f"{self.url}: {self._unanswered} requests in a row got no answer, the last for this reason: "
            f"{kind}: {quoted(detail, self.key)}"
        )


class ChatClient(GuardedClient):
    """The HTTP client under OpenAI's.

    Args:
        timeout: Seconds for a request and its whole answer.
        before_request: Awaited before each request, outside the time limit.
    """

    def __init__(self, timeout: float, before_request: Callable[[], Awaitable[None]]) -> None:
        super().__init__(timeout=timeout)
        self._before_request = before_request

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.DecodingError: A successful response is no chat completion; OpenAI's client tries again.
            openai.OpenAIError: A redirect to another host; OpenAI's client does not try again.
        """
        await self._before_request()
        try:
            response = await super().send(request, **options)
        except RefusedRedirectError as error:
            raise openai.OpenAIError(str(error)) from None
        if response.is_success:
            try:
                read_completion(response.text)
            except ValueError as error:
                raise httpx.DecodingError(str(error)) from None
        return response


def read_completion(text: str) -> Completion:
    """Parse the body of a response. Raises ValueError if it is not a chat completion."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content, finish = message_text(choice["message"]["content"]), choice.get("finish_reason")
        usage = body.get("usage") or {}
        return Completion(
            content, finish, *(token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"expected a chat completion, got {text[:100]!r}") from None


def message_text(content: Any) -> str:
    """The text of a message; of a list of parts, which some servers send, the text parts without the reasoning."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part["type"] == "text")


def token_count(tokens: Any) -> int | None:
    """A reported number of tokens; None if it is not an integer."""
    return tokens if isinstance(tokens, int) else None
