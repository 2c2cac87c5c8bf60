"""Our models as mteb calls them: the same tokens and prompts as everywhere else, without padding to pay for."""

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

# How a query prompt begins that an instruction may be put into.
INSTRUCTED = "Instruct: "


class MtebEmbedder(AbsEncoder):
    """An embedder at one of its dimensions.

    Queries, and texts of tasks that know no queries, get the task's instruction if the model takes one, else the
    model's own query prompt; documents get its document prompt.

    Args:
        embedder: The model.
        query_max_length: Tokens of a query, prompt and end token included.
        document_max_length: Tokens of a document, likewise.
        dim: To which embeddings are cut, then normalised again; the model's own by default.
        instruction: Of every task; by default the one that mteb gives, and the model's own where it gives none.
        progress: Whether to show bars.

    Attributes:
        dim: As above; may be set anew.
        remember: Whether to keep all embeddings, for another dimension of the same task; `forget` drops them.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        query_max_length: int,
        document_max_length: int,
        dim: int | None = None,
        instruction: str | None = None,
        progress: bool = False,
    ) -> None:
        self.embedder = embedder
        self.lengths = {"query": query_max_length, "document": document_max_length}
        self.instruction = instruction
        self.progress = progress
        self.dim = dim or embedder.dim
        self.remember = False
        self.mteb_model_meta = model_meta(embedder.source)
        self.forget()

    @property
    def truncated(self) -> tuple[int, int]:
        """Queries and documents of this task that were cut; queries are all texts of tasks that know none."""
        return self._stats["query"].truncated, self._stats["document"].truncated

    def encode(
        self, inputs: Any, *, task_metadata: TaskMetadata, prompt_type: PromptType | None = None, **_: Any
    ) -> Tensor:
        """[n, dim] float32, normalised, of a data loader's texts."""
        kind = "document" if prompt_type == PromptType.document else "query"
        prefix = self.prefix(task_metadata, kind)
        texts = [prefix + text for batch in inputs for text in batch["text"]]
        # With the kind: equal queries and documents may be cut at other lengths.
        key = xxhash.xxh3_128_hexdigest("\0".join([kind, *texts]).encode())
        found = self._known.get(key)
        if found is None:
            found = self._encode(texts, kind, f"{task_metadata.name}: {kind}s" if self.progress else None)
        if self.remember:
            self._known[key] = found
        return normalize(found[:, : self.dim], dim=-1)

    def prefix(self, task: TaskMetadata, kind: str) -> str:
        """What stands before every text of a kind."""
        prompts = self.embedder.prompts
        if kind == "document":
            return prompts.document
        if self.instruction is None and not prompts.default_query.startswith(INSTRUCTED):
            return prompts.default_query
        return prompts.query(query_instruction(task) if self.instruction is None else self.instruction)

    def forget(self) -> None:
        """Drop what is kept of the last task."""
        self._known: dict[str, Tensor] = {}
        self._stats = {"query": EncodingStats(), "document": EncodingStats()}

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """[n, m] float32; embeddings are normalised already."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """[n] float32."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    def _encode(self, texts: list[str], kind: str, label: str | None) -> Tensor:
        """[n, D] float32 at the full width; equal texts run once, so that they tie."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        embeddings = torch.empty(len(place), self.embedder.dim)
        found = encode_texts(
            self.embedder,
            list(place),
            prefix="",
            max_length=self.lengths[kind],
            progress=label,
            stats=self._stats[kind],
        )
        for rows, block in found:
            embeddings[rows] = block
        return embeddings[torch.tensor([place[text] for text in texts])]


class MtebReranker:
    """A reranker.

    Args:
        reranker: The model.
        instruction: Of every task; by default a query's own, else the one that mteb gives, else the model's own.
        progress: Whether to show bars.
    """

    def __init__(self, reranker: Reranker, *, instruction: str | None = None, progress: bool = False) -> None:
        self.reranker = reranker
        self.instruction = instruction
        self.progress = progress
        self.mteb_model_meta = model_meta(reranker.source)
        self.forget()

    @property
    def truncated(self) -> tuple[int, int]:
        """Queries and documents of this task that were cut."""
        return self._stats.truncated_queries, self._stats.truncated_documents

    def forget(self) -> None:
        """Count anew, for another task."""
        self._stats = ScoringStats()

    def predict(self, inputs1: Any, inputs2: Any, *, task_metadata: TaskMetadata, **_: Any) -> Tensor:
        """[n] float32: logits of yes of the queries of one data loader and the documents of another."""
        default = query_instruction(task_metadata) if self.instruction is None else self.instruction
        documents = (text for batch in inputs2 for text in batch["text"])
        pairs = zip(self._asked(inputs1, default), documents, strict=True)
        groups = [
            Group(query, [document for _, document in rows], instruction)
            for (query, instruction), rows in groupby(pairs, key=lambda pair: pair[0])
        ]
        label = f"{task_metadata.name}: candidates" if self.progress else None
        logits = self.reranker.logits(groups, progress=label, stats=self._stats)
        return torch.cat(logits) if logits else torch.empty(0)

    def _asked(self, inputs: Any, default: str | None) -> Iterator[tuple[str, str | None]]:
        """Queries, each with its instruction; `text` would be both in one."""
        for batch in inputs:
            queries = batch["query"] if "query" in batch else batch["text"]
            own = batch.get("instruction") if self.instruction is None else None
            yield from zip(queries, own or [default] * len(queries), strict=True)


def query_instruction(task: TaskMetadata) -> str | None:
    """What mteb says that a task's queries ask for; None if it says nothing."""
    prompt: Any = task.prompt
    found: str | None = prompt.get("query") if isinstance(prompt, dict) else prompt
    return found


def model_meta(source: str) -> ModelMeta:
    """What mteb writes of a model: its name, and no path of anyone's machine."""
    name = "/".join(["nestling", *source.rstrip("/").split("/")][-2:])
    return ModelMeta.create_empty(overwrites={"name": name, "similarity_fn_name": ScoringFunction.COSINE})
