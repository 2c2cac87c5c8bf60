"""Both clients, that of checks and that of made queries, against servers that do their worst."""

import gzip
import logging
import time
import traceback
import tracemalloc
from collections.abc import Callable, Generator, Iterator

import httpx
import pytest

from hostile_server import Hostile, Script, answer, hostile
from nestling.http_client import MAX_BYTES, MAX_DEPTH, require_shallow
from nestling.serving.client import Server
from nestling.synthesis.chat_models.endpoint import Endpoint
from nestling.synthesis.conversation import ChatRequest, Completion, NoAnswer

KEY = "sk-Zq7vK2wX9rT4mB8n"
Ask = Callable[[str, str], object]


def ask_server(url: str, key: str) -> object:
    """One request of serve_check."""
    return Server(url, model="m", key=key, timeout=1.0).post("/v1/embeddings", {"input": ["a"]})


def ask_endpoint(url: str, key: str) -> object:
    """Five requests of make_queries, after which a server is considered down."""

    def conversation() -> Generator[ChatRequest, Completion, None]:
        try:
            yield ChatRequest([{"role": "user", "content": "a"}], 1)
        except NoAnswer:
            return

    endpoint = Endpoint(f"{url}/v1", "m", key, concurrency=5, requests_per_minute=None, timeout=1.0, retries=0, body={})
    return endpoint.run_conversations(iter([conversation() for _ in range(5)]), lambda: None)


@pytest.fixture(params=[ask_server, ask_endpoint], ids=["server", "endpoint"])
def ask(request: pytest.FixtureRequest) -> Ask:
    client: Ask = request.param
    return client


def refusal(ask: Ask, script: Script, key: str = KEY) -> tuple[str, Hostile]:
    """The error that a client ends with, after a look at all that could show the key."""
    with hostile(script) as server, pytest.raises(ValueError, match=r"http://127\.0\.0\.1:\d+") as error:
        ask(server.url, key)
    shown = "".join(traceback.format_exception(error.value))
    assert all(key[start : start + 8] not in shown for start in range(len(key) - 7))
    return str(error.value), server


def drip(head: bytes, part: bytes) -> Script:
    """An answer of which something comes a few times within each read's time limit, without end."""

    def script(request: str) -> Iterator[bytes | float]:
        yield head
        for _ in range(100):
            yield 0.2
            yield part

    return script


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n[", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "chunks", "header", "interim answers"],
)
def test_a_drip_ends_at_the_time_limit(ask: Ask, head: bytes, part: bytes) -> None:
    started = time.monotonic()
    message, _ = refusal(ask, drip(head, part))
    assert time.monotonic() - started < 3
    assert "within 1 s" in message


def test_an_endless_answer_ends_at_the_limit_of_its_size(ask: Ask) -> None:
    def script(request: str) -> Iterator[bytes | float]:
        yield b"HTTP/1.1 200 OK\r\n\r\n["
        for _ in range(4 * MAX_BYTES // 2**20):
            yield b" " * 2**20

    tracemalloc.start()
    message, _ = refusal(ask, script)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the answer is larger than 16 MiB" in message or "within 1 s" in message
    assert peak < 8 * MAX_BYTES  # the endpoint's five requests at a time, and this server's parts


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
@pytest.mark.parametrize("text", ['[{"a": ' * 30_000, "[" * 50_000 + "]" * 50_000], ids=["open", "closed"])
def test_deep_answers_are_refused(ask: Ask, status: str, text: str) -> None:
    message, _ = refusal(ask, lambda request: [answer(text.encode(), status)])
    assert "the answer is nested more than 100 levels deep" in message


def test_compressed_answers_are_not_asked_for_and_refused(ask: Ask) -> None:
    bomb = gzip.compress(b" " * 2**25)
    message, server = refusal(ask, lambda request: [answer(bomb, Content_Encoding="gzip")])
    assert "the answer is encoded (gzip), which was not asked for" in message
    assert "accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_nothing_is_sent_to_another_host(ask: Ask, status: str) -> None:
    with hostile(lambda request: [answer(b"{}")]) as other:
        location = f"{other.url}/v1?key={KEY}"
        message, server = refusal(ask, lambda request: [answer(b"", status, Location=location)])
    assert f"redirects to another host, {other.url}, to which nothing was sent" in message
    assert server.requests and not other.requests


def test_redirects_on_one_host_are_followed() -> None:
    def script(request: str) -> list[bytes]:
        if request.startswith("POST /v1/embeddings "):
            return [answer(b"", "307 Temporary Redirect", Location="/v1/embeddings/")]
        return [answer(b'{"data": []}')]

    with hostile(script) as server:
        assert ask_server(server.url, KEY) == {"data": []}
    assert server.requests[1].startswith("POST /v1/embeddings/ ") and server.requests[1].endswith('{"input":["a"]}')


@pytest.mark.parametrize("location", ["http://[", "https://127.0.0.1:1/", "ftp://127.0.0.1/", "http://127.0.0.1/"])
def test_redirects_elsewhere_are_refused(ask: Ask, location: str) -> None:
    message, _ = refusal(ask, lambda request: [answer(b"", "307 Temporary Redirect", Location=location)])
    assert "redirects to " in message


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "500 Internal Server Error"])
@pytest.mark.parametrize(
    "echo",
    [
        f'{{"error": {{"message": "wrong key {KEY}"}}}}',
        f'{{"detail": "no such key: {KEY[:12]}"}}',
        f"<html>{KEY}</html>",
        f'"{" " * 80}{KEY}{KEY}"',
        f'{{"error": "{"x" * 285}{KEY}"}}',
        f'["{KEY}", null]',
    ],
)
def test_an_echoed_key_is_masked(ask: Ask, status: str, echo: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    message, _ = refusal(ask, lambda request: [answer(echo.encode(), status)])
    assert "***" in message or ask is ask_endpoint  # OpenAI's client leaves out most bodies
    assert KEY not in "".join(record.getMessage() for record in caplog.records)


def test_a_key_echoed_in_place_of_an_answer_is_masked(ask: Ask) -> None:
    message, _ = refusal(ask, lambda request: [answer(f"<html>{KEY}</html>".encode())])
    assert "<html>***</html>" in message


def test_an_echoed_key_among_rows_is_masked() -> None:
    with hostile(lambda request: [answer(f'{{"data": ["{KEY}"]}}'.encode())]) as server:
        client = Server(server.url, model="m", key=KEY)
        with pytest.raises(ValueError, match=r"expected 1 rows with index and embedding, got \{'data': \['\*\*\*'\]\}"):
            client.embed(["a"])


def test_control_characters_of_a_server_are_not_shown(ask: Ask) -> None:
    message, _ = refusal(ask, lambda request: [answer(b'{"error": "a\\u001b[31mb\\r\\nc"}', "400 Bad Request")])
    assert message.isprintable()


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN", '"high"', "[" * 90 + "1" + "]" * 90])
def test_numbers_that_are_none_end_in_an_error(number: str) -> None:
    body = f'{{"data": [{{"index": 0, "embedding": [{number}, "x"]}}]}}'
    with (
        hostile(lambda request: [answer(body.encode())]) as server,
        pytest.raises(ValueError, match="embeddings are not lists of numbers"),
    ):
        Server(server.url, model="m").embed(["a"])


def test_brackets_in_texts_are_no_depth() -> None:
    require_shallow(b'{"content": "' + b"[" * 1000 + b'\\"{{{' + b'"}')
    require_shallow(b"[]" * 1000 + b"[" * MAX_DEPTH)
    with pytest.raises(httpx.DecodingError):
        require_shallow(b'{"a": "\\\\"}' + b"[" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", [b"[]" * 2**22, b'\\"' * 2**22, b'"' * 2**23, b'"' + b"\\\\" * 2**22])
def test_depth_is_measured_in_one_pass(text: bytes) -> None:
    started = time.process_time()
    require_shallow(text)
    assert time.process_time() - started < 5
