"""An HTTP client for servers that may do anything: slow, endless or nested answers, and redirects to other hosts."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import httpx

# Largest answer. Eight embeddings of 8192 numbers take less than 2 MiB.
MAX_BYTES = 16 * 2**20
# Deepest nesting of JSON; Python's own functions end in a RecursionError at about ten times as much.
MAX_DEPTH = 100
# A string of JSON, in which brackets do not count; one without an end reaches to the end of the text.
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# Brackets, of one kind, and all other bytes, to be deleted.
BRACKETS, OTHERS = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b"[]{}"))


class RefusedRedirectError(httpx.RequestError):
    """A redirect to another host, to which neither texts nor keys are sent."""


class GuardedClient(httpx.AsyncClient):
    """A client whose requests end with a whole answer within a time limit, or with an error of httpx.

    httpx.ReadTimeout after the limit, which counts from sending to the last byte, however slowly these come;
    httpx.DecodingError for an answer that is encoded, too large or nested too deeply; `RefusedRedirectError`.

    Args:
        base_url: Address before the paths of requests.
        headers: Headers of every request.
        timeout: Seconds for a request and its whole answer.
    """

    def __init__(self, *, timeout: float, base_url: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            base_url=base_url,
            # Compressed answers could be a thousand times as large in memory.
            headers={"Accept-Encoding": "identity", **(headers or {})},
            timeout=timeout,
            # The caller limits simultaneous requests; waiting for a connection would count against the time limit.
            limits=httpx.Limits(max_connections=None),
            follow_redirects=True,
            event_hooks={"response": [refuse_other_host]},
        )
        self.time_limit = timeout

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request; the response has been read. `options` are those of httpx."""
        try:
            async with asyncio.timeout(self.time_limit):
                response = await super().send(request, **{**options, "stream": True})
                try:
                    body = await read_body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole answer within {self.time_limit:g} s", request=request) from None
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)


async def refuse_other_host(response: httpx.Response) -> None:
    """Raise RefusedRedirectError for a redirect to another origin, unless that is HTTPS on the same host."""
    if not response.has_redirect_location:
        return
    asked = response.request.url
    try:
        target = asked.join(response.headers["Location"])
    except httpx.InvalidURL:
        raise RefusedRedirectError("redirects to an invalid address") from None
    same = [(url.scheme, url.host, url.port) for url in (asked, target)]
    upgraded = [("http", asked.host, None), ("https", asked.host, None)]
    if same[0] != same[1] and same != upgraded:
        raise RefusedRedirectError(
            f"redirects to another host, {target.scheme}://{target.host}{f':{target.port}' if target.port else ''}, "
            "to which nothing was sent; if that is the server you mean, give its address"
        )


async def read_body(response: httpx.Response) -> bytes:
    """The body of an answer. Raises httpx.DecodingError if it is encoded, too large or nested too deeply."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise httpx.DecodingError(f"the answer is encoded ({encoding[:20]}), which was not asked for")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BYTES:
            raise httpx.DecodingError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
    require_shallow(bytes(body))
    return bytes(body)


def require_shallow(body: bytes) -> None:
    """Raise httpx.DecodingError for JSON that is nested more than `MAX_DEPTH` levels deep.

    Each round removes the innermost brackets, which takes no longer for deep texts than for others.
    """
    brackets = STRING.sub(b"", body).translate(BRACKETS, OTHERS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise httpx.DecodingError(f"the answer is nested more than {MAX_DEPTH} levels deep")
