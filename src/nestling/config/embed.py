"""Settings of train/embed.py."""

import math
from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_dims
from nestling.config.training import DevData, TrainingConfig


@dataclass(frozen=True)
class LossConfig:
    """The contrastive objective (docs/embedding.md).

    Args:
        temperature: Divides the cosines.
        hard_negatives: A row's own hard negatives enter the denominator.
        query_document: Documents of other rows enter it.
        query_query: Other queries enter it.
        document_document: Documents of other rows, seen from the row's positive, enter it.
        other_hard_negatives: Other rows' hard negatives are among those documents.
        score_margin: Mask a negative that scores above the positive by more than this; null switches the mask off.
        mask_hard_negatives: The score mask may hit a row's own hard negatives too.
        mask_identity: Mask known positives and equal queries by their text.
        distillation: Weight of the KL term towards the teacher scores of the data.
        teacher_temperature: Divides the teacher scores.
        graded_temperature: Temperature of CoSENT, for graded pairs.
    """

    temperature: float = 0.05
    hard_negatives: bool = True
    query_document: bool = True
    query_query: bool = True
    document_document: bool = True
    other_hard_negatives: bool = True
    score_margin: float | None = 0.1
    mask_hard_negatives: bool = False
    mask_identity: bool = True
    distillation: float = 0.0
    teacher_temperature: float = 1.0
    graded_temperature: float = 0.05

    def __post_init__(self) -> None:
        for name in ("temperature", "teacher_temperature", "graded_temperature"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"loss.{name} is {value:g}, expected a finite number above 0")
        require(0 <= self.distillation < math.inf, f"loss.distillation is {self.distillation:g}, expected 0 or more")
        require(
            not math.isnan(self.score_margin or 0), "loss.score_margin is nan, expected a number, or null for no mask"
        )
        terms = (self.hard_negatives, self.query_document, self.query_query, self.document_document)
        require(any(terms), "loss: every term is switched off; switch on at least one, query_document for instance")


@dataclass(frozen=True)
class RefreshConfig:
    """Hard negatives mined anew during training by the model as it is (docs/mining.md).

    Args:
        steps: Mine every so many steps; 0 mines after each epoch; null never.
        corpus: Where negatives of datasets that are no BEIR folders come from: a BEIR folder or a corpus.jsonl; all
            documents of the dataset by default.
        depth: Candidates of a query.
        margin: Keep one only if it scores lower than the lowest positive by more than this.
        percent: Keep one only if it scores below this share of the lowest positive's score; null for no such rule.
        among: Draw among so many that score highest.
    """

    steps: int | None = None
    corpus: str | None = None
    depth: int = 100
    margin: float | None = None
    percent: float | None = 0.95
    among: int = 10

    def __post_init__(self) -> None:
        require(self.steps is None or self.steps >= 0, f"refresh.steps is {self.steps}, expected 0 or more, or null")
        require(self.depth >= 1, f"refresh.depth is {self.depth}, expected at least 1")
        require(self.among >= 1, f"refresh.among is {self.among}, expected at least 1")
        require(self.margin is None or self.margin >= 0, f"refresh.margin is {self.margin}, expected 0 or more")
        require(
            self.percent is None or 0 < self.percent <= 1,
            f"refresh.percent is {self.percent}, expected a share: 0 < p <= 1",
        )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(TrainingConfig):
    """Fine-tune an embedding model.

    Args:
        dev: Retrieval sets for evaluation during training; paths with commas between do as well.
        attention: Attention implementation; auto takes flash attention where it is installed and a GPU present, and
            varlen packs the texts of causal models without padding.
        pooling: How token states become one embedding; what the model's files say by default.
        graph_memory: Gigabytes of each process for activations that are kept, so that their chunks run forward once; by
            default half of what is free.
        dims: Matryoshka dimensions; the full one is always trained.
        dim_weights: Weight of each of dims in the loss; all 1 by default.
        loss: The objective.
        refresh: Hard negatives mined anew during training.
    """

    dev: list[DevData] = field(default_factory=list)
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "varlen"] = "auto"
    pooling: Literal["last", "mean", "cls"] | None = None
    graph_memory: float | None = None
    dims: list[int] = field(default_factory=list)
    dim_weights: list[float] = field(default_factory=list)
    loss: LossConfig = LossConfig()
    refresh: RefreshConfig = RefreshConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 2, f"batch_size is {self.batch_size}; in-batch negatives need at least 2 queries")
        weights = self.dim_weights
        require(all(0 < each < math.inf for each in weights), f"dim_weights: {weights}, expected numbers above 0")
        require(
            self.precision == "bf16" or self.attention != "flash_attention_2",
            "attention: flash_attention_2 computes in bfloat16 only; set precision: bf16",
        )
        require(self.graph_memory is None or self.graph_memory >= 0, f"graph_memory is {self.graph_memory}, below 0")
        if self.refresh.steps is not None:
            require(
                1 <= self.negatives <= self.refresh.among,
                f"negatives is {self.negatives}, and refresh.among {self.refresh.among}: a refresh draws negatives "
                "among so many; expected 1 to that number",
            )
            require(
                self.loss.distillation == 0,
                "refresh.steps: mined negatives have no teacher scores; set loss.distillation to 0",
            )
        require(not self.early_stopping or bool(self.dev), "early_stopping needs a dev set; give one with --dev FOLDER")
        require_dims(self.dims)
        require(
            not self.dim_weights or len(self.dim_weights) == len(self.dims),
            f"dim_weights has {len(self.dim_weights)} values and dims {len(self.dims)}; give one weight a dimension",
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.query_max_length, self.document_max_length)

    def most_tokens(self, ranks: int) -> int:
        """Tokens of all texts of a step on one of so many ranks, at the most."""
        documents = (self.positives + self.negatives) * self.document_max_length
        return self.batch_size // ranks * (self.query_max_length + documents)
