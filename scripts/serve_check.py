"""Compare what a server answers with the numbers of the directory that it serves, and say what differs.

    python scripts/serve_check.py http://localhost:8000 --model runs/mine/final
    python scripts/serve_check.py http://localhost:8000 --model runs/mine/final --dims 256,64
    python scripts/serve_check.py http://localhost:8000 --model runs/my-reranker/final

Embeddings are asked for at /v1/embeddings, scores at /v1/rerank, /rerank (in Jina's form, then TEI's) and /v1/score.
Prompts are put before texts here, as clients have to. Ends with status 0 if the server fits, 1 if it differs, 2 if that
could not be found out.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestling.config import ServeCheckConfig, parse_config, require, require_dims, run

if TYPE_CHECKING:
    from nestling.serving.client import Server
    from nestling.serving.findings import Check


def main() -> None:
    config = read_config(sys.argv[1:])
    kind = config.kind or kind_of(Path(config.model))
    key = read_key(config.api_key_env)
    if kind == "embedding":
        from nestling.models.embedder import read_width

        require_dims(config.dims, limit=read_width(config.model))
    require(kind == "embedding" or not config.dims, f"dims: {config.model} is a reranker, which answers scores")

    from nestling.serving.client import Server

    server = Server(config.url, model=config.api_model, key=key, timeout=config.timeout)
    check = check_embedder(server, config) if kind == "embedding" else check_judge(server, config)
    print(check)
    sys.exit(1 if check.findings else 0)


def read_config(arguments: list[str]) -> ServeCheckConfig:
    """Settings; the first argument may be the address, without its flag."""
    leads = bool(arguments) and not arguments[0].startswith("-")
    config = parse_config(ServeCheckConfig, __doc__, ["--url", *arguments] if leads else arguments)
    require((Path(config.model) / "config.json").is_file(), f"--model {config.model}: no directory with a config.json")
    return config


def kind_of(directory: Path) -> Literal["embedding", "rerank"]:
    """What a directory is, by its files; what says nothing is an embedder."""

    def read(name: str) -> dict[str, object]:
        path = directory / name
        content: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    classifier = "SequenceClassification" in str(read("config.json").get("architectures"))
    crosses = read("config_sentence_transformers.json").get("model_type") == "CrossEncoder"
    return "rerank" if classifier or crosses or (directory / "reranker.json").is_file() else "embedding"


def read_key(variable: str | None) -> str | None:
    """The key that an environment variable holds."""
    key = os.environ.get(variable) if variable else None
    require(
        variable is None or bool(key), f"--api_key_env {variable}: the environment has no such variable, or it is empty"
    )
    return key


def check_embedder(server: "Server", config: ServeCheckConfig) -> "Check":
    from nestling.serving.embeddings import check_embeddings
    from nestling.serving.variants import Reference

    reference = Reference.load(config.model)
    return check_embeddings(server, reference, dims=config.dims, least_cosine=config.least_cosine)


def check_judge(server: "Server", config: ServeCheckConfig) -> "Check":
    from nestling.serving.prompts import Judge
    from nestling.serving.rerankers import check_reranker

    return check_reranker(server, Judge.load(config.model))


if __name__ == "__main__":
    run(main)
