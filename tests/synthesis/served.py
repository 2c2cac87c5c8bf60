"""A real HTTP server with OpenAI's chat API and faults, on a free port of this machine."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PASSAGE = re.compile(r"<passage>\n(.*?)\n</passage>", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """A request to the server.

    Attributes:
        step: "configuration", "query" or "judgement".
        passage: The passage in its prompt.
        body: The whole body.
        key: The Authorization header.
        time: Time of arrival in seconds.
        number: Number of earlier requests of this step for this passage.
    """

    step: str
    passage: str
    body: dict[str, Any]
    key: str
    time: float
    number: int


@dataclass
class Answer:
    """A response of the server.

    Args:
        text: Text of the completion.
        finish: finish_reason of the completion.
        status: Status of the response; other than 200 it has an error.
        headers: Headers of the response.
        delay: Seconds before the response.
        raw: The body, if it is not a chat completion.
        missing: Bytes at the end of the body that are announced but not sent.
    """

    text: str = ""
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    raw: str | None = None
    missing: int = 0

    def body(self, request: Request) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": f"refused by the test; key {request.key}"}}).encode()
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return json.dumps(whole).encode()


Behaviour = Callable[[Request], Answer]


def well(request: Request) -> Answer:
    """Valid answers, which depend only on the passage and the seed; each query is judged to be good."""
    if request.step == "judgement":
        return Answer('{"answerable": 5, "specific": 4, "natural": 5}')
    if request.step == "configuration":
        return Answer(
            json.dumps(
                {"character": 1 + request.body["seed"] % 3, "question_type": "question", "difficulty": "student"}
            )
        )
    return Answer(json.dumps({"query": f"who tells about {' '.join(request.passage.split()[:2])}?"}))


class Served(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: The requests in order of arrival.
        most_at_once: Maximum number of simultaneous requests.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that are not accepted yet; of more than 5 some would wait for a second

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.most_at_once = self.active = 0
        self.lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def begin(self, body: dict[str, Any], key: str) -> Request:
        prompt = body["messages"][0]["content"]
        others = "judgement" if "Grade the query from 1" in prompt else "query"
        step = "configuration" if '"difficulty": how' in prompt else others
        found = PASSAGE.search(prompt)
        assert found is not None
        with self.lock:
            self.active += 1
            self.most_at_once = max(self.most_at_once, self.active)
            request = Request(step, found[1], body, key, time.monotonic(), self._counts[step, found[1]])
            self._counts[step, found[1]] += 1
            self.requests.append(request)
        return request

    def end(self) -> None:
        with self.lock:
            self.active -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No message about clients that give up, which some tests make them do."""


class Handler(BaseHTTPRequestHandler):
    server: Served
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = self.server.begin(sent, self.headers.get("Authorization", ""))
        try:
            answer = self.server.behaviour(request) if self.path == "/v1/chat/completions" else Answer(status=404)
            time.sleep(answer.delay)
        finally:
            self.server.end()
        body = answer.body(request)
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - answer.missing])
        if answer.missing:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing."""


@contextmanager
def serving(behaviour: Behaviour = well) -> Iterator[Served]:
    """A server for the length of the block."""
    server = Served(behaviour)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
