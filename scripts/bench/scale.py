"""Time and memory of a cached step as the batch grows: the batch is not bounded by the memory of its activations.

python scripts/bench/scale.py
python scripts/bench/scale.py --rows 256,1024 --num_negatives 1 --repeats 1

A small Qwen3 with random weights in float32, rows of random texts with lognormal lengths (8 to 512 tokens, median 70),
the streaming loss with all its terms and masks, every chunk encoded twice (no graphs kept). Each size has a process of
its own, and they take turns; times are medians. Memory is the first step's peak over weights, gradients, optimizer
state and the batch: of the loss, and of all else; resident memory on a CPU (Linux only), allocated memory on a GPU.
"""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import exp, log
from typing import TYPE_CHECKING, Literal

from measure import Peak, Turns, machine, pick_device, synchronize
from random_models import random_qwen3

from nestling.config import parse_config, require, require_dims, run
from nestling.console import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nestling.losses.negatives import BatchStructure
    from nestling.models.embedder import Embedder

TEMPERATURE = 0.05
VOCABULARY = 8192
SHORTEST, MEDIAN, LONGEST, SPREAD = 8, 70, 512, 0.75  # of texts, in tokens; SPREAD of their logarithm
WARM_UP = 8  # rows of a first step, after which gradients and optimizer state exist and kernels are loaded


@dataclass(frozen=True)
class ScaleBenchConfig:
    """Settings of scripts/bench/scale.py.

    Args:
        rows: Sizes of the batch.
        num_negatives: Hard negatives a row, beside its query and positive.
        hidden: Hidden size; heads have 32 dimensions, and a key-value head serves two query heads.
        layers: Layers of the model.
        dims: Matryoshka dimensions.
        chunk_tokens: Positions of a chunk; by default what training takes on the device.
        repeats: Steps of each size.
        device: cpu, cuda, or auto.
    """

    rows: list[int] = field(default_factory=lambda: [256, 1024, 4096, 16384])
    num_negatives: int = 0
    hidden: int = 128
    layers: int = 2
    dims: list[int] = field(default_factory=lambda: [128, 64, 32])
    chunk_tokens: int | None = None
    repeats: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require(bool(self.rows) and min(self.rows) > 0, "rows: give sizes above 0")
        require(self.num_negatives >= 0, f"negatives is {self.num_negatives}; expected a number from 0")
        require(min(self.layers, self.repeats) > 0, "layers and repeats have to be above 0")
        require(self.chunk_tokens is None or self.chunk_tokens > 0, "chunk_tokens has to be above 0")
        require(self.hidden > 0 and self.hidden % 64 == 0, f"hidden is {self.hidden}; expected a multiple of 64")
        require_dims(self.dims, self.hidden)


@dataclass(frozen=True)
class Step:
    """What a step took.

    Args:
        seconds: All of it.
        loss_seconds: The loss and its gradient with respect to the embeddings.
        loss_mebibytes: Peak during these.
        mebibytes: Peak during all else.
    """

    seconds: float
    loss_seconds: float
    loss_mebibytes: float
    mebibytes: float


def main() -> None:
    config = parse_config(ScaleBenchConfig, __doc__)
    print(
        f"{machine(pick_device(config.device))}, {config.repeats} runs each; hidden {config.hidden}, "
        f"{config.layers} layers, dims {config.dims}, {config.num_negatives} hard negatives",
        flush=True,
    )
    found = measure(config)
    headings = ["rows", "texts", "tokens", "seconds", "ms a row", "ms of loss", "MiB", "MiB of loss", "embeddings MiB"]
    print(table(headings, [line(config, rows, each) for rows, each in found.items()], digits=2, markdown=True))


def line(config: ScaleBenchConfig, rows: int, steps: list[Step]) -> list[object]:
    """A line of the table."""
    texts = write_texts(rows, config)
    seconds = statistics.median(step.seconds for step in steps)
    loss = statistics.median(step.loss_seconds for step in steps)
    return [
        rows,
        len(texts),
        sum(map(len, texts)),
        seconds,
        1000 * seconds / rows,
        1000 * loss / rows,
        round(steps[0].mebibytes),
        round(steps[0].loss_mebibytes),
        len(texts) * config.hidden * 4 / 2**20,
    ]


def measure(config: ScaleBenchConfig) -> dict[int, list[Step]]:
    """Steps of each size."""
    with Turns({rows: partial(steps, rows, config) for rows in config.rows}) as turns:
        found: dict[int, list[Step]] = {rows: [step] for rows, step in turns.first.items()}
        for _ in range(config.repeats - 1):
            for rows, step in turns.take():
                found[rows].append(step)
    return found


def steps(rows: int, config: ScaleBenchConfig) -> Iterator[Step]:
    """In a process of its own: steps without end."""
    stepper = Stepper(config)
    stepper.step(WARM_UP)
    while True:
        yield stepper.step(rows)


class Stepper:
    """A model, its optimizer, and what they take."""

    def __init__(self, config: ScaleBenchConfig) -> None:
        from nestling.backends.optimizer import adamw
        from nestling.backends.plain import Plain
        from nestling.batches.packing import token_budget

        self.config = config
        self.device = pick_device(config.device)
        self.embedder = random_model(config).to(self.device).train()
        self.optimizer = adamw(self.embedder, learning_rate=0.0, weight_decay=0.0)
        self.backend = Plain(self.embedder, self.optimizer)
        self.chunk_tokens = config.chunk_tokens or token_budget(self.device)

    def step(self, rows: int) -> Step:
        """Gradients of a batch, and an update by nothing: every step computes the same."""
        from nestling.batches.packing import pack
        from nestling.losses.chunked import info_nce
        from nestling.training.cached import ActivationBudget, cached_backward

        batch = pack(write_texts(rows, self.config), self.chunk_tokens, 0).to(self.device)
        structure = tuples(rows, self.config.num_negatives, self.device)
        self.optimizer.zero_grad(set_to_none=False)  # gradients stay allocated, and do not count
        before_loss, loss_seconds, of_loss = 0.0, 0.0, 0.0
        memory = Peak(self.device)

        def loss_of(embeddings: "Tensor") -> "Tensor":
            nonlocal before_loss, loss_seconds, of_loss
            before_loss, start = memory.read(), self._now()
            loss = info_nce(
                embeddings[:rows], embeddings[rows:], structure, temperature=TEMPERATURE, dims=self.config.dims
            )
            loss_seconds, of_loss = self._now() - start, memory.read()
            return loss

        start = self._now()
        cached_backward(self.backend, batch, loss_of, ActivationBudget(0.0, 1.0))
        self.optimizer.step()
        return Step(self._now() - start, loss_seconds, of_loss, max(before_loss, memory.read()))

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def random_model(config: ScaleBenchConfig) -> "Embedder":
    """A Qwen3 whose tokenizer is not used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Model

    from nestling.batches.prompts import Prompts
    from nestling.models.embedder import Embedder

    backbone = random_qwen3(
        Qwen3Model,
        hidden=config.hidden,
        layers=config.layers,
        head=32,
        vocabulary=VOCABULARY,
        longest=LONGEST,
    )
    end = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({end: 0}, unk_token=end))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end)
    return Embedder(backbone, tokenizer, pooling="last", prompts=Prompts(), source="random weights")


def write_texts(rows: int, config: ScaleBenchConfig) -> list[list[int]]:
    """Random tokens of all queries, then of all positives, then of all hard negatives."""
    source = random.Random(0)
    lengths = [round(exp(source.gauss(log(MEDIAN), SPREAD))) for _ in range(rows * (2 + config.num_negatives))]
    return [source.choices(range(VOCABULARY), k=min(max(each, SHORTEST), LONGEST)) for each in lengths]


def tuples(rows: int, negatives: int, device: "torch.device") -> "BatchStructure":
    """A positive and equally many negatives a row, documents standing column by column, all texts different."""
    import torch

    from nestling.losses.negatives import BatchStructure

    order, documents = torch.arange(rows, device=device), torch.arange(rows * (1 + negatives), device=device)
    return BatchStructure(
        query=order,
        positive=order,
        weight=torch.full((rows,), 1 / rows, device=device),
        owner=order.repeat(1 + negatives),
        is_negative=documents >= rows,
        query_text=order,
        document_text=documents,
        known_positives=order.unsqueeze(1),
    )


if __name__ == "__main__":
    run(main)
