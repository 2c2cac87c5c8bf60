"""A step of training on a model with random weights, as the recipes take it in one process."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import AnyChunk, TokenBatch, pack
from nestling.config import LoraConfig
from nestling.costs.operations import Workload
from nestling.gpu import synchronize
from nestling.losses.chunked import info_nce
from nestling.models.embedder import Embedder
from nestling.models.trainable import load_trainable
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import activation_budget
from scripts.gpu.losses import rows
from scripts.gpu.models import LONGEST, random_texts
from scripts.gpu.place import Place

Tuning = Literal["lora", "full"]
TEXTS = 3  # of a row: a query, a positive and a hard negative


@dataclass
class TrainingStep:
    """A model, its optimizer, and the texts of a batch.

    Args:
        place: Where it is.
        model: In training.
        texts: Of all rows, column by column.

    Attributes:
        backend: The model in one process.
        ids: Tokens of the texts.
    """

    place: Place
    model: Embedder
    texts: Sequence[str]
    backend: Plain = field(init=False)
    ids: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.backend = Plain(self.model, adamw(self.model, learning_rate=1e-5, weight_decay=0.0))
        self.ids = self.model.text_tokenizer(self.texts, self.place.size(*LONGEST)).ids

    @property
    def workload(self) -> Workload:
        lengths = [len(each) for each in self.ids]
        return Workload(sum(lengths), sum(length**2 for length in lengths))

    def batch(self, chunk_tokens: int) -> TokenBatch:
        padding = self.model.text_tokenizer.pad_id
        return pack(self.ids, chunk_tokens, padding, padding_free=self.model.padding_free).to(self.place.device)

    def budget(self, memory: float | None = None) -> ActivationBudget:
        """What may be kept between the passes: so many bytes, or what the recipes choose."""
        return activation_budget(self.backend, self.place.size(*LONGEST), memory)

    def loss(self, embeddings: Tensor) -> Tensor:
        queries = len(self.ids) // TEXTS
        return info_nce(
            embeddings[:queries],
            embeddings[queries:],
            rows(queries, TEXTS - 1, self.place.device),
            temperature=0.02,
            dims=[self.model.dim, self.model.dim // 4],
        )

    def backward(self, batch: TokenBatch, budget: ActivationBudget) -> None:
        cached_backward(self.backend, batch, self.loss, budget)

    def take(self, batch: TokenBatch, budget: ActivationBudget) -> None:
        """The whole of it, with an update of the weights."""
        self.backward(batch, budget)
        self.backend.update(1e-5, 1.0, lambda norm: True)


def open_step(place: Place, tuning: Tuning, *, rows: int, attention: str = "auto") -> TrainingStep:
    """A step of so many rows on the shape of Qwen3-0.6B."""
    return TrainingStep(place, load(place, place.work / "large", tuning, attention), random_texts(TEXTS * rows, place))


def load(place: Place, folder: Path, tuning: Tuning, attention: str = "auto", **lora: Any) -> Embedder:
    """A model for training, on its device."""
    model = load_trainable(
        Embedder,
        str(folder),
        lora={**asdict(LoraConfig()), **lora} if tuning == "lora" else None,
        precision=place.precision,
        cpu=not place.gpu,
        attn_implementation=attention,
    )
    return model.to(place.device).train()


class ChunkClock:
    """A backend that measures how long the passes of chunks take, and waits for the device to do so.

    Attributes:
        seconds: Of all passes.
    """

    def __init__(self, backend: Plain, device: torch.device) -> None:
        self.backend = backend
        self.device = device
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        with self._measured():
            return self.backend.forward(chunk, last_backward=last_backward)

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        with self._measured():
            self.backend.backward(output, gradient, last=last)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        synchronize(self.device)
        started = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds += time.perf_counter() - started
