"""What scripts/bench/rerank.py measures causal rerankers on: settings, a model with its prompt, groups of texts."""

import random
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from random_models import random_length, random_qwen3, write_word_tokenizer

from nestling.config import require

if TYPE_CHECKING:
    from nestling.models.reranker_settings import RerankerSettings

DOCUMENTS = 8  # of a group: a positive and its negatives
PREFIX, INSTRUCTION, SUFFIX = 30, 10, 6  # words of the prompt
QUERY, DOCUMENT = 45, 145  # mean lengths
QUERY_SPREAD = 0.3  # of the logarithm
SHORTEST, LONGEST, POSITIONS = 8, 512, 2048
SPECIAL = ["<|endoftext|>", "no", "yes", "<Instruct>:", "<Query>:", "<Document>:"]


@dataclass(frozen=True)
class RerankBenchConfig:
    """Settings of scripts/bench/rerank.py.

    Args:
        kind: Of the reranker: causal, or encoder, which has other defaults.
        groups: Queries of the batch, each with a positive and seven negatives.
        micro_batch: Groups of a micro-batch; the peer's has as many pairs. Divides `groups`.
        spread: Of the logarithm of documents' lengths.
        hidden: Hidden size; heads have 64 dimensions, and a key-value head serves two query heads.
        layers: Layers of the model.
        vocabulary: Tokens of the vocabulary.
        repeats: Timed steps of each side.
        device: cpu, cuda, or auto.
    """

    kind: Literal["causal", "encoder"] = "causal"
    groups: int = 8
    micro_batch: int = 1
    spread: float = 0.75
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 151_669
    repeats: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        least = min(self.groups, self.micro_batch, self.layers, self.repeats)
        require(least > 0, "groups, micro_batch, layers and repeats have to be above 0")
        require(self.groups % self.micro_batch == 0, f"micro_batch: {self.micro_batch} does not divide {self.groups}")
        require(self.spread >= 0, f"spread is {self.spread}; expected a number from 0")
        require(self.hidden > 0 and self.hidden % 64 == 0, f"hidden is {self.hidden}; expected a multiple of 64")
        require(self.vocabulary >= 1000, f"vocabulary is {self.vocabulary}; expected at least 1000 tokens")


@dataclass(frozen=True)
class Group:
    """A query and its documents, the first of which is relevant."""

    query: str
    documents: list[str]


@dataclass(frozen=True)
class Case:
    """What a process is to do: one side's step, with the model that lies in `folder`."""

    side: str
    folder: Path
    config: RerankBenchConfig


def write_model(config: RerankBenchConfig, folder: Path) -> int:
    """A Qwen3 with a tokenizer of whole words, whose chat template is our prompt; the number of its parameters."""
    from transformers import Qwen3ForCausalLM

    model = random_qwen3(
        Qwen3ForCausalLM,
        hidden=config.hidden,
        layers=config.layers,
        head=64,
        vocabulary=config.vocabulary,
        longest=POSITIONS,
        tied=True,
    )
    model.save_pretrained(folder)
    write_word_tokenizer(
        folder,
        words(config),
        unknown=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[0],
        chat_template=chat_template(settings(config)),
    )
    return sum(parameter.numel() for parameter in model.parameters())


def words(config: RerankBenchConfig) -> list[str]:
    return [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), config.vocabulary))]


def settings(config: RerankBenchConfig) -> "RerankerSettings":
    """A prompt of random words."""
    from nestling.models.reranker_settings import RerankerSettings

    source, known = random.Random(1), words(config)[len(SPECIAL) :]
    prefix, instruction, suffix = (" ".join(source.choices(known, k=k)) for k in (PREFIX, INSTRUCTION, SUFFIX))
    return RerankerSettings(
        f"{prefix}\n",
        f"\n{suffix}",
        instruction,
        query_max_length=LONGEST,
        document_max_length=LONGEST,
    )


def chat_template(chosen: "RerankerSettings") -> str:
    """The same prompt for the peer, whose pairs are messages with the roles query and document."""
    query, document = (
        f"{{{{ messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first }}}}"
        for role in ("query", "document")
    )
    return chosen.prefix + chosen.prompt.body(query, document) + chosen.suffix


def write_groups(config: RerankBenchConfig) -> list[Group]:
    """Random words, so that every text is different."""
    source, known = random.Random(0), words(config)[len(SPECIAL) :]

    def text(mean: int, spread: float) -> str:
        median = mean * exp(-(spread**2) / 2)
        length = random_length(source, median=median, spread=spread, shortest=SHORTEST, longest=LONGEST)
        return " ".join(source.choices(known, k=length))

    return [
        Group(text(QUERY, QUERY_SPREAD), [text(DOCUMENT, config.spread) for _ in range(DOCUMENTS)])
        for _ in range(config.groups)
    ]
