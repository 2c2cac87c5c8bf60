"""What an exported embedder must reproduce: the embeddings that the model in memory gives for some texts.

Shapes: n texts, each as a query and as a document, D dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nestling.export.probe_outputs import ProbeOutputs, probe_outputs
from nestling.export.serving_files import BaseFiles
from nestling.models.adapter_merging import without_adapters
from nestling.models.embedder import Embedder, read_model_files
from nestling.models.merged_weights import MergedWeights
from nestling.models.modules import Head, ModuleSettings, load_head, numbered
from nestling.models.pooling import Pooling
from nestling.records.record import Kind

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
        outputs: The embeddings, [2 n, D] each, of the n probes as queries, then as documents.
        base: The model before training; None when its weights are exported as they were.
        prefix: What weight names may begin with, such as "model."; compared without it.
        pooled_from: The first token of each of the 2 n probes that pooling reads; None where it reads prompts.
        head: The modules behind the pooling, in the folders of the directory.
        base_head: Weights of the base's.
    """

    pooling: Pooling
    query_prompt: str
    document_prompt: str
    max_length: int
    probe_length: int
    end_token: int | None
    outputs: ProbeOutputs
    base: BaseFiles | None
    prefix: str
    pooled_from: list[int] | None
    head: Sequence[ModuleSettings]
    base_head: Mapping[str, Tensor]


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
    embedder: Embedder, weights: MergedWeights, dtype: torch.dtype, max_length: int, trained: bool
) -> EmbedderExpectation:
    """The probes' embeddings on the way from the trained model to weights written in `dtype`."""
    length, base = min(max_length, PROBE_LENGTH), base_files(embedder) if trained else None
    query, document, count = embedder.prefix("query"), embedder.prefix("document"), len(probe_texts(length))
    base_head = load_head(embedder.source, embedder.head.settings)
    run = partial(encode_probes, embedder, length)
    return EmbedderExpectation(
        pooling=embedder.pooling,
        query_prompt=query,
        document_prompt=document,
        max_length=max_length,
        probe_length=length,
        end_token=embedder.text_tokenizer.end_id,
        outputs=probe_outputs(embedder, weights, dtype, base, run, partial(with_head, embedder, base_head, run)),
        base=base,
        prefix=f"{without_adapters(embedder.backbone).base_model_prefix}.",
        pooled_from=embedder.text_tokenizer.pooled_from([query] * count + [document] * count),
        head=numbered(embedder.head.settings),
        base_head=base_head.state_dict(),
    )


def with_head(embedder: Embedder, head: Head, run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives while the embedder has another head."""
    own, embedder.head = embedder.head, head.to(embedder.device)
    try:
        return run()
    finally:
        embedder.head = own


def encode_probes(embedder: Embedder, max_length: int) -> Tensor:
    """[2 n, D] float32: the probes as queries, then as documents."""
    kinds: tuple[Kind, Kind] = ("query", "document")
    texts = probe_texts(max_length)
    return torch.cat([embedder.encode(texts, kind=kind, max_length=max_length) for kind in kinds])


def base_files(embedder: Embedder) -> BaseFiles:
    """The files of the model that was trained."""
    return BaseFiles(embedder.source, read_model_files(embedder.source).subfolder)
