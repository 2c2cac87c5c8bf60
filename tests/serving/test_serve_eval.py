"""What a server answers, measured: the figures are those of scripts/evaluate.py, at any endpoint."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest

from nestling.serving import dispatch as dispatching
from nestling.serving import served
from nestling.serving.client import RefusedError, Server
from nestling.serving.dispatch import Request, patiently
from nestling.serving.vector_file import VectorFile
from recipes.runs import run_main
from scripts import evaluate, serve_eval
from serving.conftest import serving
from sets import random_set

measure = partial(run_main, evaluate.main)
ask = partial(run_main, serve_eval.main)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "words"
    random_set(folder, 60, 12)
    return folder


@pytest.fixture(scope="module")
def expected(models: dict[str, Path], beir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The file of scripts/evaluate.py of a model, with or without a reranker."""

    def written(name: str, *more: str | Path, data: Path = beir) -> Path:
        path = tmp_path_factory.mktemp("expected") / "result.json"
        done = measure("--model", models[name], "--data", data, "--output", path, *more)
        assert done.returncode == 0, done.stderr
        return path

    return written


def results(path: Path) -> dict[tuple[Any, ...], float]:
    rows = json.loads(path.read_text())["results"]
    return {(row["dim"], row["embedding_precision"], row["order"]): row["metrics"]["nDCG@10"] for row in rows}


def test_the_figures_are_those_of_evaluation(
    url: str, models: dict[str, Path], expected: Callable[..., Path], tmp_path: Path
) -> None:
    """Over so many queries that two documents of one, which int8 rounds to the other order in a batch of another shape,
    change a mean by less than the tolerance."""
    data, output = tmp_path / "words", tmp_path / "served.json"
    random_set(data, 60, 120)
    wanted = expected("qwen3", "--embedding_precision", "float32,int8,binary", data=data)
    done = ask(
        *("--url", f"{url}/qwen3/flaky", "--model", models["qwen3"], "--data", data, "--output", output),
        *("--embedding_precision", "float32,int8,binary", "--expected", wanted, "--batch_size", "7"),
        *("--concurrency", "3", "--details", "true"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(results(output)) == 6  # two dimensions
    assert results(output) == pytest.approx(results(wanted), abs=1e-3)
    assert "served as expected: 6 of 6 within 0.001" in done.stdout
    queries, documents = json.loads(output.read_text())["traffic"]
    assert (queries["requests"], queries["texts"]) == (120, 120)
    assert documents["requests"] == -(-documents["texts"] // 7)
    assert queries["retries"] + documents["retries"] > 0
    assert 0 < documents["p50_ms"] <= documents["p95_ms"] <= documents["p99_ms"]
    assert documents["texts_per_second"] > 0
    assert documents["tokens"] > documents["texts"]
    assert (tmp_path / "served.details.jsonl").read_text().count("\n") == 6 * 120


@pytest.mark.parametrize("form", ["tei", "cohere", "healthy"])
def test_endpoints_of_each_form(
    form: str, url: str, models: dict[str, Path], beir: Path, expected: Callable[..., Path]
) -> None:
    prompts = ["--model", models["e5"]] if form == "healthy" else []
    if form == "tei":
        prompts = ["--query_prompt", "query: ", "--document_prompt", "passage: "]
    done = ask("--url", f"{url}/e5/{form}", "--data", beir, "--expected", expected("e5"), *prompts)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "form", ["healthy", *(pytest.param(each, marks=pytest.mark.slow) for each in ("tei", "pairs-only"))]
)
def test_a_served_reranker_orders_what_a_served_embedder_finds(
    form: str, url: str, models: dict[str, Path], beir: Path, expected: Callable[..., Path], tmp_path: Path
) -> None:
    more = ("--depth", "20", "--rerank_weight", "0.5")
    wanted, output = expected("qwen3", "--reranker", models["causal"], *more), tmp_path / "served.json"
    done = ask(
        *("--url", f"{url}/qwen3/healthy", "--rerank_url", f"{url}/causal/{form}", "--model", models["qwen3"]),
        *("--data", beir, "--expected", wanted, "--output", output, "--batch_size", "8", *more),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    orders = {key: value for key, value in results(output).items() if key[2]}
    assert orders == pytest.approx(results(wanted), abs=1e-3)
    assert json.loads(output.read_text())["traffic"][2]["requests"] == 12 * 3


def test_documents_that_are_too_long_for_a_reranker_are_cut_by_a_field_of_the_request(
    url: str, models: dict[str, Path], beir: Path, tmp_path: Path
) -> None:
    """vLLM refuses pairs beyond an encoder's limit; with max_tokens_per_doc it reads what training read."""
    wanted = tmp_path / "wanted.json"
    more = ("--data", beir, "--first_stage", "bm25", "--depth", "20")
    done = measure(*more, "--reranker", models["short"], "--output", wanted)
    assert done.returncode == 0, done.stderr
    assert " documents, 0 truncated" not in done.stdout + done.stderr
    asked = (*more, "--rerank_url", f"{url}/short/refuses-long-pairs", "--expected", wanted)
    refused = ask(*asked)
    assert refused.returncode == 2
    assert """--rerank_body '{"max_tokens_per_doc": N}'""" in refused.stderr
    cut = ask(*asked, "--rerank_body", '{"max_tokens_per_doc": 8}')
    assert cut.returncode == 0, cut.stdout + cut.stderr
    assert "served as expected: 3 of 3 within 0.001" in cut.stdout


class Busy(BaseHTTPRequestHandler):
    """A server of embeddings and scores that answers each path with 429 and 503 before it answers."""

    asked: ClassVar[Counter[str]] = Counter()

    def answer(self, content: dict[str, Any]) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked[self.path] += 1
        status = {1: 429, 2: 503}.get(self.asked[self.path], 200)
        body = json.dumps(content if status == 200 else {"error": "come back"}).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "small"}]})

    def do_POST(self) -> None:
        self.answer({"data": [{"index": 0, "embedding": [1, 2]}], "results": [{"index": 0, "relevance_score": 0.5}]})

    def log_message(self, *_: object) -> None:
        pass


def test_addresses_of_endpoints_of_the_other_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"/v1/embeddings is no endpoint that reranks; expected one that ends"):
        Server("http://127.0.0.1:9/v1/embeddings", model="m").find_score_endpoint()
    with pytest.raises(ValueError, match=r"/v1/score is no endpoint that embeds; expected one that ends"):
        Server("http://127.0.0.1:9/v1/score", model="m").find_embedding_endpoint()


def test_a_server_that_says_later_is_asked_later() -> None:
    """Its 429 was taken for a server that embeds nothing, and that of its list for one without models."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}"
        with pytest.raises(RefusedError, match="/v1/models answers 429, come back"):
            patiently(partial(Server, url), 0)
        server = patiently(partial(Server, url), 2)
        assert server.model == "small"
        found = patiently(server.find_embedding_endpoint, 2)
        assert (found.path, found.width) == ("/v1/embeddings", 2)
        assert patiently(server.find_score_endpoint, 2).path == "/v1/rerank"
        assert Busy.asked == {"/v1/models": 3, "/v1/embeddings": 3, "/v1/rerank": 3}
        http.shutdown()


class BreaksOff(Busy):
    """A server whose first answers are cut within their JSON, under status 200."""

    broken: ClassVar[int] = 0
    sent: ClassVar[int] = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).sent += 1
        whole = json.dumps({"data": [{"index": 0, "embedding": [1, 2]}]}).encode()
        body = whole[:30] if self.sent <= self.broken else whole
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_response_that_is_no_json_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended a measurement, which a lost connection or a 502 does not."""
    monkeypatch.setattr(dispatching, "FIRST_WAIT", 0.01)
    taken: list[Any] = []
    request = Request("/v1/embeddings", {"input": ["a"]}, 1, 1, taken.append)
    with ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        server = Server(f"http://127.0.0.1:{http.server_port}", model="m")
        send = partial(dispatching.dispatch, server, [request], "a", total=1, done=0, concurrency=1, retries=2)
        BreaksOff.broken = 2
        assert send().retries == 2
        assert taken == [{"data": [{"index": 0, "embedding": [1, 2]}]}]
        BreaksOff.broken, BreaksOff.sent = 3, 0
        told = r"/v1/embeddings: expected JSON, got '{\"data\": \[{\"index\": 0, \"embedd'$"
        with pytest.raises(ValueError, match=told):
            send()
        assert BreaksOff.sent == 3
        http.shutdown()


def test_fields_of_requests_may_set_the_dimensions(
    url: str, models: dict[str, Path], beir: Path, expected: Callable[..., Path]
) -> None:
    """As docs/serving.md has it; the width was asked for without them."""
    wanted = expected("qwen3", "--dims", "32")
    asked = ("--url", f"{url}/qwen3/healthy", "--model", models["qwen3"], "--data", beir, "--expected", wanted)
    done = ask(*asked, "--body", '{"dimensions": 32, "encoding_format": "base64"}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/v1/embeddings, model tiny, 32 numbers" in done.stdout
    assert "served as expected: 1 of 1 within 0.001" in done.stdout


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("short-together", "/v1/embeddings: embeddings of 16 numbers, where the first had 64"),
        (
            "refuses-batches",
            "413, batch size 8 > maximum allowed batch size 1. If a request has too many texts for it: ",
        ),
    ],
)
def test_answers_that_batches_alone_get_are_told(
    fault: str, said: str, url: str, models: dict[str, Path], beir: Path
) -> None:
    done = ask("--url", f"{url}/qwen3/{fault}", "--model", models["qwen3"], "--data", beir, "--retries", 0)
    assert done.returncode == 2
    assert said in done.stderr


def test_drift_has_a_status_of_its_own(
    url: str, models: dict[str, Path], beir: Path, expected: Callable[..., Path]
) -> None:
    wanted = expected("qwen3", "--dims", "64")
    asked = ("--model", models["qwen3"], "--data", beir, "--dims", "64", "--expected", wanted)
    done = ask("--url", f"{url}/qwen3/no-eos", *asked)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "drift: 1 of 1 differ by more than 0.001; scripts/serve_check.py says why" in done.stdout
    assert ask("--url", f"{url}/qwen3/no-eos", *asked, "--tolerance", "1").returncode == 0
    other = ask("--url", f"{url}/qwen3/healthy", *asked[:-3], "32", "--expected", wanted)
    assert other.returncode == 2
    assert other.stderr.startswith("error: --expected has none of what was measured here (words/test)")


def test_an_interrupted_run_goes_on(
    url: str, models: dict[str, Path], beir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were answered are not asked for again, unless the server has changed; complete runs leave nothing."""
    asked = ("--url", f"{url}/qwen3/healthy", "--model", models["qwen3"], "--data", beir, "--dims", "64")
    put, left = VectorFile.put, [30]

    def dying(file: VectorFile, index: int, row: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(file, index, row)

    with monkeypatch.context() as patch:
        patch.setattr(VectorFile, "put", dying)
        assert ask(*asked, "--batch_size", "4", "--concurrency", "1").returncode != 0
    done = ask(*asked)
    assert done.returncode == 0, done.stderr
    assert "documents: 18 of " in done.stderr
    assert "are there from a run that was interrupted" in done.stderr
    assert "interrupted" not in ask(*asked).stderr

    with monkeypatch.context() as patch:
        left[0] = 30
        patch.setattr(VectorFile, "put", dying)
        ask(*asked, "--batch_size", "4", "--concurrency", "1")
    monkeypatch.setattr(served, "SAME_COSINE", 1.1)  # as if it were another model now
    assert "the server answers otherwise than in the run that was interrupted" in ask(*asked).stderr


@pytest.mark.slow
def test_a_real_model_on_a_real_set(
    minilm: Path, shared_data: Path, models: dict[str, Path], url: str, tmp_path: Path
) -> None:
    cranfield, wanted = shared_data / "cranfield", tmp_path / "expected.json"
    assert measure("--model", minilm, "--data", cranfield, "--output", wanted).returncode == 0
    with serving({"minilm": minilm}) as address:
        done = ask(
            *("--url", f"{address}/minilm/healthy", "--rerank_url", f"{url}/encoder/healthy", "--model", minilm),
            *("--data", cranfield, "--expected", wanted, "--depth", "5"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_a_torn_row_is_asked_for_again(tmp_path: Path) -> None:
    keys = np.arange(5, dtype=np.int64)
    file = VectorFile.open(tmp_path, keys, 3)
    for i in range(4):
        file.put(i, np.full(3, i + 0.5))
    file.rows[2, 1] = 9  # written in part
    again = VectorFile.open(tmp_path, keys, 3)
    assert again.known().tolist() == [0, 1, 3]
    more = VectorFile.open(tmp_path, np.array([7, 3, 2, 0], dtype=np.int64), 3)
    assert more.known().tolist() == [1, 3]
    assert more.rows[1].tolist() == [3.5] * 3
    assert len(list(tmp_path.iterdir())) == 3, "what the other file had is in this one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://x"], "give --data, folders in the BEIR layout"),
        (["--data", "x"], "give either --url, a server of embeddings, or --first_stage with a --rerank_url"),
        (["--data", "x", "--first_stage", "bm25"], "first_stage is what a --rerank_url reads"),
        (
            ["--data", "x", "--url", "http://x", "--instruction", "a"],
            "instruction needs a --model, or a --query_prompt",
        ),
        (["--data", "x", "--url", "http://x", "--expected", "no.json"], "--expected no.json: no such file"),
    ],
)
def test_settings_that_cannot_be(arguments: list[str], message: str) -> None:
    done = ask(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
