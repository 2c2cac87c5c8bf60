"""Compare the answers of a server with the model directory that it serves.

    python scripts/serve_check.py http://localhost:8000 --model runs/mine/final
    python scripts/serve_check.py http://localhost:8000 --model runs/mine/final --dims 256,64
    python scripts/serve_check.py http://localhost:8000 --model runs/my-reranker/final

Embeddings are requested at /v1/embeddings, scores at /v1/rerank, /rerank (in Jina's form, then TEI's) and /v1/score.
Prompts are added to texts here, as clients have to do. The exit status is 0 if the server agrees with the directory, 1
if it differs, 2 if they could not be compared, 3 if it differs for texts beyond the directory's limit only.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestling.api_keys import read_api_key
from nestling.config import ServeCheckConfig, parse_config, require, require_dims, run

if TYPE_CHECKING:
    from nestling.serving.client import Server
    from nestling.serving.findings import ServerReport


def main() -> None:
    config = read_config(sys.argv[1:])
    kind = config.kind or kind_of(Path(config.model))
    if config.trust_remote_code:
        from nestling.models.remote_code import trust_code

        trust_code(config.model)
    key = read_api_key("--api_key_env", config.api_key_env)
    if kind == "embedding":
        from nestling.models.embedder import read_width

        require_dims(config.dims, limit=read_width(config.model))
    require(kind == "embedding" or not config.dims, f"dims: {config.model} is a reranker, which answers scores")

    from nestling.serving.client import Server

    server = Server(config.url, model=config.api_model, key=key, timeout=config.timeout)
    report = compare_embedder(server, config) if kind == "embedding" else compare_reranker(server, config)
    print(report)
    sys.exit(report.status)


def read_config(arguments: list[str]) -> ServeCheckConfig:
    """Parse the settings; the first argument may be the address, without its flag."""
    begins_with_address = bool(arguments) and not arguments[0].startswith("-")
    config = parse_config(ServeCheckConfig, __doc__, ["--url", *arguments] if begins_with_address else arguments)
    require((Path(config.model) / "config.json").is_file(), f"--model {config.model}: no directory with a config.json")
    return config


def kind_of(directory: Path) -> Literal["embedding", "rerank"]:
    """Whether a directory is a reranker, by its files; otherwise it is an embedder."""

    from nestling.models.json_files import read_object

    classifier = "SequenceClassification" in str(read_object(str(directory), "config.json").get("architectures"))
    stored = read_object(str(directory), "config_sentence_transformers.json")
    cross_encoder = stored.get("model_type") == "CrossEncoder"
    return "rerank" if classifier or cross_encoder or (directory / "reranker.json").is_file() else "embedding"


def compare_embedder(server: "Server", config: ServeCheckConfig) -> "ServerReport":
    from nestling.serving.embedder_reference import EmbedderReference
    from nestling.serving.embeddings import check_embeddings

    reference = EmbedderReference.load(config.model)
    return check_embeddings(server, reference, dims=config.dims, min_cosine=config.least_cosine)


def compare_reranker(server: "Server", config: ServeCheckConfig) -> "ServerReport":
    from nestling.models.token_model import is_decoder, read_config
    from nestling.serving.encoder_reference import EncoderReference
    from nestling.serving.reranker_reference import RerankerReference
    from nestling.serving.rerankers import check_reranker

    kind = RerankerReference if is_decoder(read_config(config.model)) else EncoderReference
    return check_reranker(server, kind.load(config.model))


if __name__ == "__main__":
    run(main)
