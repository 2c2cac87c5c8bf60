"""A real server on this machine that sends what it is told to, byte for byte, whatever it is asked."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

# What to send to a request, given its text: bytes, and seconds to wait between them.
Script = Callable[[str], Iterable[bytes | float]]


class Hostile(socketserver.ThreadingTCPServer):
    """The server.

    Attributes:
        requests: The texts of all requests, with their headers and bodies.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    server: Hostile

    def handle(self) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            request += line
        lines = request.decode().lower().splitlines()
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        text = request.decode() + self.rfile.read(length).decode()
        self.server.requests.append(text)
        with suppress(OSError):  # the client gives up
            for part in self.server.script(text):
                if isinstance(part, bytes):
                    self.wfile.write(part)
                else:
                    time.sleep(part)


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def hostile(script: Script) -> Iterator[Hostile]:
    """A server for the length of the block."""
    with Hostile(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
