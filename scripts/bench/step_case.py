"""What scripts/bench/step.py measures on: its settings, a model, and texts of random words."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from random_models import random_length, random_qwen3, write_word_tokenizer

from nestling.config import require, require_dims

SHORTEST, MEDIAN, LONGEST, SPREAD = 8, 70, 512, 0.75  # of texts, in tokens; SPREAD of their logarithm
END = "<|endoftext|>"


@dataclass(frozen=True)
class StepBenchConfig:
    """Settings of scripts/bench/step.py.

    Args:
        rows: Queries of the batch, each with a positive and a hard negative.
        single_rows: The same for the comparison with one graph.
        hidden: Hidden size; heads have 32 dimensions, and a key-value head serves two query heads.
        layers: Layers of the model.
        vocabulary: Tokens of the vocabulary.
        dims: Matryoshka dimensions; the greatest is the embedding's.
        mini_batch: Texts that the peer encodes at a time; its default.
        chunk_tokens: Positions of our chunks; by default what training takes on the device.
        activation_memory: GB of graphs that our second side keeps.
        repeats: Timed steps of each side.
        device: cpu, cuda, or auto.
    """

    rows: int = 1024
    single_rows: int = 256
    hidden: int = 128
    layers: int = 2
    vocabulary: int = 8192
    dims: list[int] = field(default_factory=lambda: [128, 64, 32])
    mini_batch: int = 32
    chunk_tokens: int | None = None
    activation_memory: float = 2.0
    repeats: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        least = min(self.rows, self.single_rows, self.layers, self.mini_batch, self.repeats)
        require(least > 0, "rows, single_rows, layers, mini_batch and repeats have to be above 0")
        require(self.chunk_tokens is None or self.chunk_tokens > 0, "chunk_tokens has to be above 0")
        require(self.hidden > 0 and self.hidden % 64 == 0, f"hidden is {self.hidden}; expected a multiple of 64")
        require(self.vocabulary >= 1000, f"vocabulary is {self.vocabulary}; expected at least 1000 tokens")
        require_dims(self.dims, self.hidden)
        require(max(self.dims) == self.hidden, f"dims: the greatest has to be the embedding's {self.hidden}")


@dataclass(frozen=True)
class Case:
    """What a process is to do: one side's step on `rows` rows, with the model that lies in `folder`."""

    side: str
    rows: int
    folder: Path
    config: StepBenchConfig


def write_model(config: StepBenchConfig, folder: Path) -> int:
    """A Qwen3 with a tokenizer of whole words; the number of its parameters."""
    from tokenizers import processors
    from transformers import Qwen3Model

    model = random_qwen3(
        Qwen3Model,
        hidden=config.hidden,
        layers=config.layers,
        head=32,
        vocabulary=config.vocabulary,
        longest=LONGEST,
    )
    model.save_pretrained(folder)
    write_word_tokenizer(
        folder,
        [END, *vocabulary(config)],
        unknown=END,
        post_processor=processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)]),
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=LONGEST,
    )
    return sum(parameter.numel() for parameter in model.parameters())


def vocabulary(config: StepBenchConfig) -> list[str]:
    return [f"w{i}" for i in range(1, config.vocabulary)]


def write_columns(rows: int, config: StepBenchConfig) -> list[list[str]]:
    """Queries, positives and hard negatives: random words, so that every text is different."""
    source, words = random.Random(0), vocabulary(config)

    def text() -> str:
        length = random_length(source, median=MEDIAN, spread=SPREAD, shortest=SHORTEST, longest=LONGEST)
        return " ".join(source.choices(words, k=length - 1))  # the end token comes after them

    columns = [[text() for _ in range(rows)] for _ in range(3)]
    assert len({text for column in columns for text in column}) == 3 * rows
    return columns


def count_tokens(text: str) -> int:
    """A word is a token; the end token comes after them."""
    return len(text.split()) + 1
