"""A stand-in for a language model, to try scripts/make_queries.py and scripts/make_test_set.py without one.

    python data/stand_in_writer.py --port 8008
    python scripts/make_queries.py --data corpus.jsonl --model stand-in --endpoint.url http://127.0.0.1:8008/v1 \\
        --output pairs.jsonl

It is no language model: a query is a handful of words of the passage, and a grade the share of the query's words that
the passage has. So it shows that everything works together and what it costs; what comes of such queries says
nothing about what a model would be worth. Its answers are a function of the request alone. It has OpenAI's API,
prints its address, and answers until it is told to end.
"""

import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nestling.config import parse_config, require, run

PASSAGE = re.compile(r"<passage>\n(.*?)\n</passage>", re.DOTALL)
QUERY = re.compile(r"^Query: ([^\n]*)$|<query>\n(.*?)\n</query>", re.MULTILINE | re.DOTALL)
LENGTH = re.compile(r"^Length: (\d+) to (\d+) words$", re.MULTILINE)
FIELD = re.compile(r'"(\w+)":')
WORD = re.compile(r"[^\W\d_]{4,}")
COMMON = """about above after also because been before between both does each either every from have here into itself
just like made make many more most much must only other over same shall should since some such than that their them then
there these they this those through under until upon used using very were what when where which while will with within
without would your"""
OPENING = 12  # words at the beginning, mostly a title, that count as much as a word that comes three times
SALIENT = 16  # words of a passage that queries are made of


@dataclass(frozen=True)
class StandInConfig:
    """Settings of data/stand_in_writer.py.

    Args:
        port: Port to listen at, of this machine alone; 0 for any that is free.
    """

    port: int = 8008


def main() -> None:
    config = parse_config(StandInConfig, __doc__)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", config.port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"port {config.port} cannot be listened at ({error}); give another --port") from None
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    print("a stand-in without any language model: queries are words of the passage", file=sys.stderr)
    server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """Answers requests for chat completions."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a request; with status 400 what is none that Nestling sends."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.reply(200, completion(json.loads(sent)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.reply(400, {"error": {"message": f"no request of scripts/make_queries.py: {error}"}})

    def reply(self, status: int, content: dict[str, Any]) -> None:
        """Send a JSON object."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing for each request."""


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """The chat completion for a request. Raises ValueError if the prompt asks for nothing that is known here."""
    prompt = request["messages"][0]["content"]
    text = json.dumps(answer(prompt, random.Random(f"{request.get('seed')} {prompt}")), ensure_ascii=False)
    tokens_in, tokens_out = len(prompt.split()), len(text.split())
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {
        "id": "stand-in",
        "object": "chat.completion",
        "created": 0,
        "model": str(request.get("model")),
        "choices": [choice],
        "usage": usage,
    }


def answer(prompt: str, draw: random.Random) -> dict[str, Any]:
    """The object that a prompt asks for in its last line, by the fields that it names there."""
    passages, fields = "\n".join(PASSAGE.findall(prompt)), FIELD.findall(prompt.rstrip().rpartition("\n")[2])
    require(bool(passages and fields), "the prompt has no <passage>, or its last line no JSON object")
    if "query" in fields:
        return {"query": query(prompt, passages, draw)}
    if "character" in fields:
        return configuration(prompt, draw)
    share = shared(prompt, passages)
    return {"grade": round(3 * share)} if "grade" in fields else dict.fromkeys(fields, 1 + round(4 * share))


def configuration(prompt: str, draw: random.Random) -> dict[str, Any]:
    """The first persona, and any of the kinds and difficulties that the prompt lists below the passage."""
    _, kinds, difficulties = re.split(
        r'^"(?:question_type|difficulty)"', prompt.rpartition("</passage>")[2], flags=re.M
    )
    kind, difficulty = (draw.choice(re.findall(r"^- (\w+):", part, re.M)) for part in (kinds, difficulties))
    return {"character": 1, "question_type": kind, "difficulty": difficulty}


def query(prompt: str, passage: str, draw: random.Random) -> str:
    """Words of the passage, as many as the prompt asks for if it has them."""
    found = LENGTH.search(prompt)
    least, most = (int(found[1]), int(found[2])) if found else (2, 8)
    words = salient(passage)
    chosen = set(draw.sample(words, min(len(words), draw.randint(least, most))))
    return " ".join(word for word in words if word in chosen) or passage.split()[0]


def salient(passage: str) -> list[str]:
    """The words of a passage that come most often or at its beginning, the most important first."""
    common = set(COMMON.split())
    words = [word for word in WORD.findall(passage.lower()) if word not in common]
    counts = Counter(words)
    counts.update(dict.fromkeys(words[:OPENING], 2))
    return [word for word, _ in counts.most_common(SALIENT)]


def shared(prompt: str, passage: str) -> float:
    """The share of the query's words that the passage has."""
    found = QUERY.search(prompt)
    words = set(WORD.findall(((found[1] or found[2]) if found else "").lower()))
    return len(words & set(WORD.findall(passage.lower()))) / max(1, len(words))


if __name__ == "__main__":
    run(main)
