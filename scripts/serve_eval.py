"""Measure what a server answers, on retrieval sets in the BEIR layout: quality as scripts/evaluate.py does, and speed.

    python scripts/serve_eval.py --url http://localhost:8000 --model runs/mine/final --data my-set
    python scripts/serve_eval.py --url http://localhost:8000 --model runs/mine/final --data my-set --expected after.json
    python scripts/serve_eval.py --url http://localhost:8000 --query_prompt "query: " --data my-set --dims 384,128
    python scripts/serve_eval.py --url http://localhost:8000 --rerank_url http://localhost:8001 --data my-set
    python scripts/serve_eval.py --command "vllm serve runs/mine/final --port 8000" --url http://localhost:8000 \
        --model runs/mine/final --data my-set
    python scripts/serve_eval.py --first_stage bm25 --rerank_url http://localhost:8001 --data my-set

Servers of embeddings answer in the form of OpenAI, Jina and vLLM (/v1/embeddings), of TEI (/embed) or of Cohere
(/v2/embed, which makes prompts itself); rerankers in that of Jina and Cohere, TEI or vLLM (/v1/rerank, /rerank,
/v1/score). A run that was killed goes on from what was answered. The exit status is 0 if all was measured and nDCG@10
is as --expected says, 3 if it is not, 2 if something could not be measured.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nestling.api_keys import read_api_key
from nestling.config import ServeEvalConfig, details_path, new_outputs, parse_config, require, require_dims, run

if TYPE_CHECKING:
    from nestling.records import RetrievalSet
    from nestling.retrieval import Candidates
    from nestling.retrieval.result_files import Measurement
    from nestling.serving.client import EmbeddingEndpoint, ScoreEndpoint, Server
    from nestling.serving.dispatch import Traffic
    from nestling.serving.reading import Reading
    from nestling.serving.served import Sending, ServedSet
    from nestling.serving.vector_file import VectorFile

DRIFTED = 3


def main() -> None:
    config = parse_config(ServeEvalConfig, __doc__)
    outputs = (
        [] if config.output is None else [Path(config.output), *[details_path(Path(config.output))] * config.details]
    )
    with new_outputs(*(("--output", path) for path in outputs)):
        drifted = serve_eval(config)
    sys.exit(DRIFTED if drifted else 0)


@dataclass
class Servers:
    """The servers, what they are asked and what that took.

    Args:
        embedder: The server of embeddings, its endpoint and how texts are sent; None without one.
        reranker: The server of scores and its endpoint; None without one.
    """

    embedder: "tuple[Server, EmbeddingEndpoint, Reading] | None"
    reranker: "tuple[Server, ScoreEndpoint] | None"
    traffic: "list[Traffic]" = field(default_factory=list)
    files: "list[VectorFile]" = field(default_factory=list)


def serve_eval(config: ServeEvalConfig) -> bool:
    """Measure, print and write; whether the results are not as expected."""
    from nestling.records import load_retrieval_set
    from nestling.retrieval.result_files import results_table, write_details, write_results
    from nestling.serving.drift import drift_table, read_expected

    expected = read_expected(config.expected)
    sets = [load_retrieval_set(folder, config.split) for folder in config.data]
    with ExitStack() as stack:
        start_servers(config, stack)
        servers = open_servers(config)
        measurements = (each for data in sets for each in measure(config, servers, data))
        if config.output and config.details:
            rows = write_details(Path(config.output), measurements)
        else:
            rows = [row for row, *_ in measurements]
    for part in ([row for row in rows if row.order is None], [row for row in rows if row.order is not None]):
        print(results_table(part) if part else "", end="\n" if part else "")
    print(f"\n{traffic_table(servers.traffic)}")
    figures = [each.figures() for each in servers.traffic]
    if config.output:
        write_results(Path(config.output), asdict(config), rows, traffic=figures)
    for file in servers.files:  # of which nothing is needed again
        file.remove()
    if not expected:
        return False
    text, drifted = drift_table(rows, expected, config.tolerance)
    print(f"\n{text}")
    return drifted


def start_servers(config: ServeEvalConfig, stack: ExitStack) -> None:
    """Start the servers that a command is given of, until the stack closes; their output goes beside --output."""
    from nestling.serving.started import started_server

    folder = Path(stack.enter_context(TemporaryDirectory())) if config.output is None else Path(config.output).parent
    given = {"server": (config.command, config.url), "reranker": (config.rerank_command, config.rerank_url)}
    for name, (command, url) in given.items():
        if command is not None and url is not None:
            log = folder / f"{name}.log"
            server = started_server(command, url, health=config.health, timeout=config.start_timeout, log=log)
            stack.enter_context(server)


def open_servers(config: ServeEvalConfig) -> Servers:
    """Find the endpoints, and say what they are asked."""
    from nestling.serving.client import Server
    from nestling.serving.dispatch import patiently

    servers = Servers(None, None)
    if config.url is not None:
        reading = read_prompts(config)
        key = read_api_key("--api_key_env", config.api_key_env)
        opened = partial(Server, config.url, model=config.api_model, key=key, timeout=config.timeout)
        server = patiently(opened, config.retries)
        endpoint = patiently(partial(server.find_embedding_endpoint, config.body), config.retries)
        require_dims(config.dims, limit=endpoint.width)
        if endpoint.form == "texts" and config.query_prompt is None:  # the server makes prompts, by what a text is
            reading = replace(reading, prompts=type(reading.prompts)(form=""))
        print(f"embeddings: {server.url(endpoint.path)}, {server.chosen_model}, {endpoint.width} numbers")
        prompts = reading.prompts
        print(f"  query prompt {prompts.query(config.instruction)!r}, document prompt {prompts.document!r}")
        servers.embedder = server, endpoint, reading
    if config.rerank_url is not None:
        key = read_api_key("--rerank_api_key_env", config.rerank_api_key_env)
        opened = partial(Server, config.rerank_url, model=config.rerank_api_model, key=key, timeout=config.timeout)
        server = patiently(opened, config.retries)
        servers.reranker = server, patiently(partial(server.find_score_endpoint, config.rerank_body), config.retries)
        print(f"scores: {server.url(servers.reranker[1].path)}, {server.chosen_model}")
    return servers


def read_prompts(config: ServeEvalConfig) -> "Reading":
    """How texts are sent, by the model's directory and the settings."""
    prompts = (config.instruction, config.query_prompt, config.document_prompt)
    from nestling.serving.reading import reading_of, reading_without_model

    if config.model is None:
        return reading_without_model(*prompts)
    require((Path(config.model) / "config.json").is_file(), f"--model {config.model}: no directory with a config.json")
    if config.trust_remote_code:
        from nestling.models.remote_code import trust_code

        trust_code(config.model)
    return reading_of(config.model, *prompts, (config.query_max_length, config.document_max_length))


def measure(config: ServeEvalConfig, servers: Servers, data: "RetrievalSet") -> "Iterator[Measurement]":
    """Measure the server of embeddings on a set at every dimension and precision, then the reranker's order."""
    from nestling.retrieval import embedder_details, open_candidates, relevant_ranks_and_scores
    from nestling.retrieval.result_files import result_row

    served = None
    if servers.embedder is not None:
        served = embed(config, servers, data)
        encoded, cut = served.encoded, (served.encoded.query_stats.truncated, served.encoded.document_stats.truncated)
        lengths = (*cut, *servers.embedder[2].limits)
        for dim in measured_dims(config, servers):
            for precision in config.embedding_precision:
                ranks, scores = relevant_ranks_and_scores(encoded, dim, precision)
                details = partial(embedder_details, encoded, data, ranks, scores, dim, precision)
                yield result_row(data, ranks, dim, precision, lengths), data, details
    if servers.reranker is not None:
        if served is None:
            assert config.first_stage is not None
            yield from measure_reranker(
                config, servers, data, open_candidates(config.first_stage, data, config.depth, progress=True)
            )
        else:
            yield from measure_reranker(config, servers, data, nearest(config, servers, data, served))


def measured_dims(config: ServeEvalConfig, servers: Servers) -> list[int]:
    """The dimensions to measure: as set, the model's, or what the server answers."""
    assert servers.embedder is not None
    _, endpoint, reading = servers.embedder
    known = [each for each in reading.dims if each <= endpoint.width]
    return config.dims or known or [endpoint.width]


def embed(config: ServeEvalConfig, servers: Servers, data: "RetrievalSet") -> "ServedSet":
    from nestling.serving.served import embed_set

    assert servers.embedder is not None
    server, endpoint, reading = servers.embedder
    how = sending(config, server, endpoint.path, data, config.body)
    served = embed_set(server, endpoint, data, reading, config.instruction, how)
    servers.traffic += served.traffic
    servers.files += served.files
    return served


def sending(
    config: ServeEvalConfig, server: "Server", path: str, data: "RetrievalSet", body: dict[str, Any]
) -> "Sending":
    """How requests to an endpoint about a set are sent; what is answered is kept by address, model, fields and set."""
    from nestling.records.store import default_cache, digest
    from nestling.serving.served import Sending

    folder = default_cache() / "served" / digest([server.url(path), server.model, body, data.name])
    return Sending(config.batch_size, config.concurrency, config.retries, body, folder)


def nearest(config: ServeEvalConfig, servers: Servers, data: "RetrievalSet", served: "ServedSet") -> "Candidates":
    """The documents that the served embeddings find, in the first dimension that is set."""
    from nestling.retrieval import Candidates, search_top

    dim = config.dims[0] if config.dims else None
    return Candidates.from_run(search_top(served.encoded, data, config.depth, dim=dim), data, config.depth)


def measure_reranker(
    config: ServeEvalConfig, servers: Servers, data: "RetrievalSet", candidates: "Candidates"
) -> "Iterator[Measurement]":
    """Measure the candidates in the first stage's order, in the reranker's, and with both fused."""
    from nestling.retrieval import candidate_details, ranks_in_candidates
    from nestling.retrieval.choice import fusion_of
    from nestling.retrieval.result_files import result_row
    from nestling.serving.served import score_candidates

    assert servers.reranker is not None
    server, endpoint = servers.reranker
    how = sending(config, server, endpoint.path, data, config.rerank_body)
    scores, traffic, file = score_candidates(server, endpoint, data, candidates, how)
    servers.traffic.append(traffic)
    servers.files.append(file)
    orders = {"first stage": candidates.first_stage_scores, "reranked": scores}
    if candidates.scores is not None:
        orders["fused"] = fusion_of(config.rerank_weight)(candidates.scores, scores)
    for order, values in orders.items():
        ranks = ranks_in_candidates(values, candidates, data)
        row = replace(result_row(data, ranks), order=order)
        yield row, data, partial(candidate_details, values, candidates, data, ranks)


def traffic_table(traffic: "list[Traffic]") -> str:
    """Latencies and rates of what was asked in this run."""
    from nestling.console import table

    rows: list[list[Any]] = []
    for each in (one.figures() for one in traffic):
        numbers = [each["requests"], each["texts"], each["tokens"] or None, each["retries"]]
        times = [each[name] for name in ("p50_ms", "p95_ms", "p99_ms")] if each["requests"] else [None] * 3
        rows.append([each["what"], *numbers, *times, each["texts_per_second"] if each["requests"] else None])
    titles = ["asked for", "requests", "texts", "tokens", "retried", "p50 ms", "p95 ms", "p99 ms", "texts/s"]
    return table(titles, rows, digits=1)


if __name__ == "__main__":
    run(main)
