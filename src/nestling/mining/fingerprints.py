"""What identifies a model, so that what it made can be kept and used again."""

import json
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from torch import nn

from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.token_model import TokenModel


def fingerprint(model: TokenModel, about: list[Any], backend: Tokenizer) -> str:
    """A digest of every weight, the configuration, the precision, the tokenizer and what else is said about a model."""
    tokenizer = json.loads(backend.to_str())
    tokenizer.pop("truncation")  # that of the last text
    settings = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    settings.pop("transformers_version", None)
    digest = xxhash.xxh3_128()
    digest.update(json.dumps([settings, str(model.precision), tokenizer, *about], sort_keys=True, default=str).encode())
    add_weights(digest, model)
    return digest.hexdigest()


def add_weights(digest: xxhash.xxh3_128, model: nn.Module) -> None:
    """Add every weight, with its name, type and shape."""
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def of_embedder(embedder: Embedder) -> str:
    """Of all that makes an embedding from a prompt and a text."""
    return fingerprint(embedder, [embedder.pooling], embedder.text_tokenizer.backend)


def of_reranker(reranker: Reranker) -> str:
    """Of all that makes a score from an instruction, a query and a document."""
    return fingerprint(reranker, [reranker.settings.to_json()], reranker.pairs.backend)
