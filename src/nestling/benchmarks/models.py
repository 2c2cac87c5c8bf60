"""Models of Nestling with the interface of mteb, and the same tokens and prompts as elsewhere in Nestling."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
import xxhash
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor
from torch.nn.functional import normalize

from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats, encode_texts
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group, ScoringStats


class MtebEmbedder(AbsEncoder):
    """An embedder with the interface of mteb, at one of its dimensions.

    Queries, and texts of tasks without queries, get the instruction of the task if the query prompt of the model has
    an instruction, else the default query prompt; documents get the document prompt.

    Args:
        embedder: The embedder.
        query_max_length: Maximum number of tokens of a query, including prompt and end token; by default the
            embedder's own.
        document_max_length: Maximum number of tokens of a document, likewise.
        dim: Dimensions to truncate embeddings to, before they are normalised again; by default those of the model.
        instruction: Instruction of all tasks; by default that of mteb for each task, or else that of the model.
        progress: Whether to show progress bars.

    Attributes:
        dim: As above; may be changed.
        cache_embeddings: Whether to keep all embeddings for other dimensions of the same task, until `reset`.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        query_max_length: int | None = None,
        document_max_length: int | None = None,
        dim: int | None = None,
        instruction: str | None = None,
        progress: bool = False,
    ) -> None:
        self.embedder = embedder
        own = embedder.max_seq_length
        self.lengths = {"query": query_max_length or own, "document": document_max_length or own}
        self.instruction = instruction
        self.progress = progress
        self.dim = dim or embedder.dim
        self.cache_embeddings = False
        self.mteb_model_meta = model_meta(embedder.source)
        self.reset()

    @property
    def truncated(self) -> tuple[int, int]:
        """Numbers of queries and documents of this task that were truncated.

        In tasks without queries, all texts count as queries.
        """
        return self._stats["query"].truncated, self._stats["document"].truncated

    def encode(
        self, inputs: Any, *, task_metadata: TaskMetadata, prompt_type: PromptType | None = None, **_: Any
    ) -> Tensor:
        """[n, dim] float32: normalised embeddings of the texts of a data loader."""
        kind = "document" if prompt_type == PromptType.document else "query"
        prefix = self.prefix(task_metadata, kind)
        texts = [text for batch in inputs for text in batch["text"]]
        # Includes the kind, since equal queries and documents may be truncated at different lengths.
        key = xxhash.xxh3_128_hexdigest("\0".join([kind, prefix, *texts]).encode())
        embeddings = self._cached.get(key)
        if embeddings is None:
            embeddings = self._encode(texts, kind, prefix, f"{task_metadata.name}: {kind}s" if self.progress else None)
        if self.cache_embeddings:
            self._cached[key] = embeddings
        return normalize(embeddings[:, : self.dim], dim=-1)

    def prefix(self, task: TaskMetadata, kind: str) -> str:
        """The prompt of the queries or documents of a task."""
        prompts = self.embedder.prompts
        if kind == "document":
            return prompts.document
        if self.instruction is None and not prompts.instructed:
            return prompts.default_query
        return prompts.query(query_instruction(task) if self.instruction is None else self.instruction)

    def reset(self) -> None:
        """Drop cached embeddings and counts of the last task."""
        self._cached: dict[str, Tensor] = {}
        self._stats = {"query": EncodingStats(), "document": EncodingStats()}

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """[n, m] float32: cosine similarities of normalised embeddings [n, dim] and [m, dim]."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """[n] float32: cosine similarities of the rows of normalised embeddings [n, dim]."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    def _encode(self, texts: list[str], kind: str, prefix: str, label: str | None) -> Tensor:
        """[n, D] float32 with all dimensions; equal texts are encoded once, so that they score the same."""
        index_of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embeddings = torch.empty(len(index_of), self.embedder.dim)
        blocks = encode_texts(
            self.embedder,
            list(index_of),
            prefix=prefix,
            max_length=self.lengths[kind],
            progress=label,
            stats=self._stats[kind],
        )
        for rows, block in blocks:
            embeddings[rows] = block
        return embeddings[torch.tensor([index_of[text] for text in texts])]


class MtebReranker:
    """A reranker with the interface of mteb.

    Args:
        reranker: The reranker.
        instruction: Instruction of all tasks; by default that of the query, else that of mteb for the task, else that
            of the model.
        progress: Whether to show progress bars.
    """

    def __init__(self, reranker: Reranker, *, instruction: str | None = None, progress: bool = False) -> None:
        self.reranker = reranker
        self.instruction = instruction
        self.progress = progress
        self.mteb_model_meta = model_meta(reranker.source)
        self.reset()

    @property
    def truncated(self) -> tuple[int, int]:
        """Numbers of queries and documents of this task that were truncated."""
        return self._stats.truncated_queries, self._stats.truncated_documents

    def reset(self) -> None:
        """Reset the counts of the last task."""
        self._stats = ScoringStats()

    def predict(self, inputs1: Any, inputs2: Any, *, task_metadata: TaskMetadata, **_: Any) -> Tensor:
        """[n] float32: logits of the pairs of the queries of one data loader and the documents of another."""
        default = query_instruction(task_metadata) if self.instruction is None else self.instruction
        documents = (text for batch in inputs2 for text in batch["text"])
        pairs = zip(self._queries_with_instructions(inputs1, default), documents, strict=True)
        groups = [
            Group(query, [document for _, document in rows], instruction)
            for (query, instruction), rows in groupby(pairs, key=lambda pair: pair[0])
        ]
        label = f"{task_metadata.name}: candidates" if self.progress else None
        logits = self.reranker.logits(groups, progress=label, stats=self._stats)
        return torch.cat(logits) if logits else torch.empty(0)

    def _queries_with_instructions(self, inputs: Any, default: str | None) -> Iterator[tuple[str, str | None]]:
        """Yield (query, instruction); the field `text` would contain both."""
        for batch in inputs:
            queries = batch["query"] if "query" in batch else batch["text"]
            instructions = batch.get("instruction") if self.instruction is None else None
            yield from zip(queries, instructions or [default] * len(queries), strict=True)


def query_instruction(task: TaskMetadata) -> str | None:
    """The instruction of mteb for the queries of a task; None if there is none."""
    prompt: Any = task.prompt
    embeddings: str | None = prompt.get("query") if isinstance(prompt, dict) else prompt
    return embeddings


def model_meta(source: str) -> ModelMeta:
    """Metadata of a model: only its name, without the path of its directory."""
    name = "/".join(["nestling", *source.rstrip("/").split("/")][-2:])
    return ModelMeta.create_empty(overwrites={"name": name, "similarity_fn_name": ScoringFunction.COSINE})
