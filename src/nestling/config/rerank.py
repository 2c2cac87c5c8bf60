"""Settings of train/rerank.py."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nestling.config.checks import require
from nestling.config.training import DevData, TrainingConfig


@dataclass(frozen=True)
class CandidateData(DevData):
    """One development set in the BEIR layout, and the documents that are scored for each of its queries.

    Args:
        path: The folder with corpus.jsonl, queries.jsonl and qrels/.
        split: Which qrels file to use.
        name: How reports call it; the folder's name by default.
        instruction: Task of its queries; the run's instruction by default.
        candidates: Where the documents of each query come from: bm25, a TREC run file, or a .jsonl file of lists.
        depth: How many of bm25 or a run; a .jsonl file's lists are scored whole.
    """

    candidates: str = "bm25"
    depth: int = 100

    def __post_init__(self) -> None:
        require(self.depth >= 1, f"dev: depth is {self.depth}, expected at least 1")


@dataclass(frozen=True)
class RerankLossConfig:
    """The objective of a reranker (docs/reranking.md).

    Args:
        objective: Each document's answer by itself; the positives against the negatives of their query; or the
            divergence from a teacher's scores over the documents of a query.
        label_space: Of pointwise: the two answers, as at inference, or all words, as a language model is trained.
        labels: Of pointwise: 1 and 0, or the scores of the data as probabilities.
        positive_weight: Of pointwise: weight of the part of yes.
        temperature: Of listwise and distillation: divides the logits.
        teacher_temperature: Of distillation: divides the teacher's scores.
    """

    objective: Literal["pointwise", "listwise", "distillation"] = "pointwise"
    label_space: Literal["answers", "vocabulary"] = "answers"
    labels: Literal["hard", "teacher"] = "hard"
    positive_weight: float = 1.0
    temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("positive_weight", "temperature", "teacher_temperature"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"loss.{name} is {value:g}, expected a finite number above 0")
        pointwise = self.objective == "pointwise"
        require(
            pointwise or (self.label_space, self.labels, self.positive_weight) == ("answers", "hard", 1.0),
            f"loss: label_space, labels and positive_weight are pointwise's, and the objective is {self.objective}",
        )
        require(
            self.objective != "pointwise" or (self.temperature, self.teacher_temperature) == (1.0, 1.0),
            "loss: pointwise has no temperature; set objective: listwise or distillation",
        )

    @property
    def needs_scores(self) -> bool:
        """Whether the data has to bring scores."""
        return self.objective == "distillation" or self.labels == "teacher"


@dataclass(frozen=True, kw_only=True)
class RerankConfig(TrainingConfig):
    """Fine-tune a reranker.

    Args:
        dev: Retrieval sets whose candidates are reranked during training; paths with commas between do as well.
        attention: auto packs prompts without padding; sdpa, eager and flash_attention_2 are transformers' own.
        share_prefix: Run the tokens that the prompts of a query have in common once; takes attention: auto.
        prefix: What stands before instruction, query and document; what the model's files say by default, or
            Qwen3-Reranker's.
        suffix: What stands behind them, up to the answer; likewise.
        yes: The word for relevant, one token.
        no: The word for not relevant, one token.
        loss: The objective.
    """

    dev: list[CandidateData] = field(default_factory=list)
    batch_size: int = 16
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    share_prefix: bool = True
    prefix: str | None = None
    suffix: str | None = None
    yes: str | None = None
    no: str | None = None
    loss: RerankLossConfig = RerankLossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.early_stopping or bool(self.dev), "early_stopping needs a dev set; give one with --dev FOLDER")
        require(
            self.attention == "auto" or not self.share_prefix,
            f"attention: {self.attention} cannot share prefixes; set attention: auto, or share_prefix: false",
        )
        require(
            self.precision == "bf16" or self.attention != "flash_attention_2",
            "attention: flash_attention_2 computes in bfloat16 only; set precision: bf16",
        )
        require(
            all(data.in_batch_negatives for data in self.train),
            "train: in_batch_negatives is the embedder's; a reranker learns from each query's own documents",
        )

    def published(self) -> dict[str, object]:
        settings = super().published()
        dev = [
            {**asdict(each), "path": Path(each.path).name, "candidates": Path(each.candidates).name}
            for each in self.dev
        ]
        return {**settings, "dev": dev}

    @property
    def reading(self) -> dict[str, Any]:
        """What it sets of `nestling.models.reranker.RerankerSettings`; the rest is as the model's files say."""
        given = {"instruction": self.query_instruction}
        given |= {name: getattr(self, name) for name in ("prefix", "suffix", "yes", "no")}
        lengths = {name: getattr(self, name) for name in ("query_max_length", "document_max_length")}
        return {name: value for name, value in given.items() if value is not None} | lengths
