"""What an exported embedder must reproduce: the embeddings that the model in memory gives for some texts.

Shapes: n texts, each as a query and as a document, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.export.serving_files import BaseFiles, loses_digits
from nestling.models.embedder import Embedder, Kind, read_model_files
from nestling.models.merged_weights import MergedWeights, computing_with, without_adapters
from nestling.models.pooling import Pooling

# Least cosines between a reload and the merged weights in memory, and between it and a trainer in bfloat16.
MERGED_COSINE = 0.99999
ROUNDED_COSINE = 0.999

# Longer probes cost minutes on a large model on the CPU, and say nothing new about truncation.
PROBE_LENGTH = 256


@dataclass(frozen=True)
class EmbedderExpectation:
    """What a directory must reproduce.

    Args:
        pooling: How its card pools.
        query_prompt: The prompt called "query".
        document_prompt: The prompt called "document".
        max_length: Tokens that its sentence_bert_config.json allows.
        probe_length: Tokens to which the probes are cut, at most max_length.
        end_token: Id of every text's last token, None where pooling does not read it.
        merged: [2 n, D] float32, embeddings of the n probes as queries, then as documents: float32 computation on the
            merged weights in memory, rounded as they are written.
        trainer: The same from the model as it was trained, in its own precision.
        trainer_cosine: The least cosine with those.
        base: The model before training.
        prefix: Of weight names, in either model, with or without.
    """

    pooling: Pooling
    query_prompt: str
    document_prompt: str
    max_length: int
    probe_length: int
    end_token: int | None
    merged: Tensor
    trainer: Tensor
    trainer_cosine: float
    base: BaseFiles
    prefix: str


def probe_texts(max_length: int) -> list[str]:
    """Short, tiny, Chinese, code, and one text that is longer than `max_length` tokens.

    None begins or ends in white space, which sentence-transformers before 6 strips.
    """
    return [
        "How do I list the files that changed during the last week?",
        "a",
        "人工智慧是研究如何使電腦模擬人類智慧的科學。",
        "def first(rows):\n    return next(iter(rows), None)",
        "The boundary layer over a flat plate becomes turbulent. " * max(1, max_length // 4),
    ]


def expect_embeddings(
    embedder: Embedder, weights: MergedWeights, dtype: torch.dtype, max_length: int
) -> EmbedderExpectation:
    """The probes' embeddings: as trained, and in float32 on the merged weights rounded to `dtype`."""
    length = min(max_length, PROBE_LENGTH)
    trainer = encode_probes(embedder, length)
    precision = embedder.precision
    try:
        embedder.precision = torch.float32
        with computing_with(embedder.backbone, weights, dtype):
            merged = encode_probes(embedder, length)
    finally:
        embedder.precision = precision
    exact = precision == torch.float32 and not loses_digits(embedder, dtype)
    return EmbedderExpectation(
        pooling=embedder.pooling,
        query_prompt=embedder.prefix("query"),
        document_prompt=embedder.prefix("document"),
        max_length=max_length,
        probe_length=length,
        end_token=embedder.text_tokenizer.end_id,
        merged=merged,
        trainer=trainer,
        trainer_cosine=MERGED_COSINE if exact else ROUNDED_COSINE,
        base=base_files(embedder),
        prefix=f"{without_adapters(embedder.backbone).base_model_prefix}.",
    )


def encode_probes(embedder: Embedder, max_length: int) -> Tensor:
    """[2 n, D] float32: the probes as queries, then as documents."""
    kinds: tuple[Kind, Kind] = ("query", "document")
    texts = probe_texts(max_length)
    return torch.cat([embedder.encode(texts, kind=kind, max_length=max_length) for kind in kinds])


def base_files(embedder: Embedder) -> BaseFiles:
    """The files of the model that was trained."""
    return BaseFiles(embedder.source, read_model_files(embedder.source).subfolder)
