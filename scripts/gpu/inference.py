"""How fast encoding, reranking and search are."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group, ScoringStats
from nestling.retrieval.nearest import nearest_keys
from nestling.retrieval.search import DOCUMENT_BLOCK, EncodedSet
from scripts.gpu.models import random_texts
from scripts.gpu.place import Place

DOCUMENTS_OF_A_QUERY = 16
DEPTH = 100


def measure(place: Place) -> None:
    """Texts and tokens a second of an embedder and of a reranker, in each precision."""
    for precision in place.size((torch.bfloat16, torch.float32), (torch.float32,)):
        for kind, run in (("encoding", encode), ("reranking", rerank)):
            texts, tokens, call = run(place, precision)
            seconds = place.median_seconds(call)
            rates = {"texts_per_second": round(texts / seconds), "tokens_per_second": round(tokens / seconds)}
            place.add("encoding and reranking", kind=kind, precision=str(precision), seconds=seconds, **rates)


def encode(place: Place, precision: torch.dtype) -> tuple[int, int, Callable[[], object]]:
    """The number of texts, of their tokens, and what encodes them."""
    model = Embedder.from_pretrained(place.work / "large", precision=precision, cpu=not place.gpu).to(place.device)
    texts = random_texts(place.size(1024, 8), place)
    call = partial(model.encode, texts, kind="document", max_length=512)
    return len(texts), sum(map(len, model.text_tokenizer(texts, 512).ids)), call


def rerank(place: Place, precision: torch.dtype) -> tuple[int, int, Callable[[], object]]:
    """The number of documents, of the tokens of their prompts, and what scores them."""
    model = Reranker.from_pretrained(place.work / "large", precision=precision, cpu=not place.gpu).to(place.device)
    texts = random_texts(place.size(32, 1) * (DOCUMENTS_OF_A_QUERY + 1), place)
    starts = range(0, len(texts), DOCUMENTS_OF_A_QUERY + 1)
    groups = [Group(texts[i], texts[i + 1 : i + 1 + DOCUMENTS_OF_A_QUERY]) for i in starts]
    stats = ScoringStats()
    model.logits(groups, stats=stats)
    return stats.documents, stats.tokens, partial(model.logits, groups)


def search(place: Place) -> None:
    """The nearest of a million documents, for a thousand queries."""
    documents, queries, width = place.size((1_000_000, 1000, 1024), (2000, 10, 32))
    encoded = random_set(queries, documents, width, place.device)
    seconds = place.median_seconds(partial(nearest_keys, encoded, DEPTH))
    place.add("search", queries=queries, documents=documents, width=width, depth=DEPTH, seconds=seconds)


def random_set(queries: int, documents: int, width: int, device: torch.device) -> EncodedSet:
    """Random vectors in the place of an encoded collection, whose documents lie in the memory of the machine."""
    torch.manual_seed(0)
    return EncodedSet(
        queries=torch.randn(queries, width),
        documents=torch.cat(
            [torch.randn(min(100_000, documents - i), width, device=device).cpu() for i in range(0, documents, 100_000)]
        ),
        copies=torch.ones(documents, dtype=torch.int64),
        distinct_index=np.arange(documents),
        first_document=0,
        block_size=DOCUMENT_BLOCK,
        offsets=torch.zeros(queries + 1, dtype=torch.int64),
        relevant=torch.empty(0, dtype=torch.int64),
        gains=np.empty(0),
        own=torch.full((queries,), -1),
        device=device,
    )
