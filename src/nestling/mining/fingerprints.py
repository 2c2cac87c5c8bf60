"""Digests that identify a model, under which the cache keeps what the model computed."""

import json
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from torch import nn

from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.token_model import TokenModel


def fingerprint(model: TokenModel, settings: list[Any], backend: Tokenizer) -> str:
    """A digest of all weights, the configuration, the precision, the tokenizer and further settings of a model."""
    tokenizer = json.loads(backend.to_str())
    tokenizer.pop("truncation")  # whatever the last text was truncated to
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    config.pop("transformers_version", None)
    digest = xxhash.xxh3_128()
    digest.update(
        json.dumps([config, str(model.precision), tokenizer, *settings], sort_keys=True, default=str).encode()
    )
    add_weights(digest, model)
    return digest.hexdigest()


def add_weights(digest: xxhash.xxh3_128, model: nn.Module) -> None:
    """Add every weight, with its name, dtype and shape."""
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def embedder_fingerprint(embedder: Embedder) -> str:
    """Changes with everything that the embedding of a given text, its prompt included, depends on."""
    head = [[each.kind, dict(each.settings)] for each in embedder.head.settings]
    settings = [embedder.pooling, embedder.text_tokenizer.pool_prompt, head]
    return fingerprint(embedder, settings, embedder.text_tokenizer.backend)


def reranker_fingerprint(reranker: Reranker) -> str:
    """Changes with everything that the score of a given instruction, query and document depends on."""
    settings = [reranker.settings.to_json(), reranker.max_length]
    return fingerprint(reranker, settings, reranker.pairs.backend)
