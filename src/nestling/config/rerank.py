"""Settings of train/rerank.py."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nestling.config.attention import Attention
from nestling.config.checks import require, require_positive
from nestling.config.datasets import CandidateData
from nestling.config.training import TrainingConfig, require_dev_and_attention


@dataclass(frozen=True)
class RerankLossConfig:
    """The objective of a reranker (docs/reranking.md).

    Args:
        objective: pointwise over the two answers or over the vocabulary, listwise, lambda (LambdaLoss for nDCG), or
            from teacher scores: distillation (of their distribution) and margin_mse.
        labels: For pointwise and lambda: 1 and 0 (hard), or the scores of the data (teacher): probabilities for
            pointwise, grades from 0 to 10 for lambda.
        positive_weight: For pointwise: weight of the loss of relevant documents.
        temperature: For all but pointwise: divides the logits.
        teacher_temperature: For distillation and margin_mse: divides the teacher's scores.
    """

    objective: Literal["pointwise", "pointwise_vocabulary", "listwise", "lambda", "distillation", "margin_mse"] = (
        "pointwise"
    )
    labels: Literal["hard", "teacher"] = "hard"
    positive_weight: float = 1.0
    temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "positive_weight", "temperature", "teacher_temperature", section="loss.")
        require(
            self.pointwise or self.positive_weight == 1.0,
            f"loss: positive_weight is pointwise's, and the objective is {self.objective}",
        )
        require(
            self.pointwise or self.objective == "lambda" or self.labels == "hard",
            f"loss: labels is for pointwise and lambda, and the objective is {self.objective}",
        )
        require(
            not self.pointwise or self.temperature == 1.0,
            f"loss: {self.objective} has no temperature; set objective: listwise, lambda, distillation or margin_mse",
        )
        require(
            self.from_teacher or self.teacher_temperature == 1.0,
            f"loss: {self.objective} has no teacher_temperature; set objective: distillation or margin_mse",
        )

    @property
    def pointwise(self) -> bool:
        """Whether each document is judged by itself."""
        return self.objective in ("pointwise", "pointwise_vocabulary")

    @property
    def from_teacher(self) -> bool:
        """Whether scores of a teacher stand beside the labels."""
        return self.objective in ("distillation", "margin_mse")

    @property
    def needs_scores(self) -> bool:
        """Whether the data has to bring scores."""
        return self.from_teacher or self.labels == "teacher"

    @property
    def needs_positives(self) -> bool:
        """Whether it learns nothing from documents that are all negatives."""
        return self.objective in ("listwise", "margin_mse") or (self.objective, self.labels) == ("lambda", "hard")


@dataclass(frozen=True, kw_only=True)
class RerankConfig(TrainingConfig):
    """Fine-tune a reranker.

    Args:
        dev: Retrieval sets for evaluation during training; on the command line also paths with commas between.
        attn_implementation: As in transformers; varlen: no padding; auto: also runs a query's common prompt once.
        prefix: Text before instruction, query and document; by default the model's own, or Qwen3-Reranker's.
        suffix: Text after them, up to the answer; by default likewise.
        answers: The words for relevant and for not relevant, one token each; by default the model's own, or yes,no.
        loss: The objective.
    """

    dev: list[CandidateData] = field(default_factory=list)
    batch_size: int = 16
    attn_implementation: Attention = "auto"
    prefix: str | None = None
    suffix: str | None = None
    answers: list[str] = field(default_factory=list)
    loss: RerankLossConfig = RerankLossConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_dev_and_attention(self, bool(self.dev or self.dev_share), self.attn_implementation)
        require(
            len(self.answers) in (0, 2), f"answers: {self.answers}, expected two words: for relevant and not relevant"
        )
        require(
            all(data.in_batch_negatives for data in self.train),
            "train: in_batch_negatives is the embedder's; a reranker learns from each query's own documents",
        )
        require(
            all(data.symmetric for data in self.train),
            "train: symmetric is the embedder's; a reranker reads both texts of a pair in one prompt",
        )

    def card_settings(self) -> dict[str, object]:
        settings = super().card_settings()
        dev = [
            {**asdict(each), "path": Path(each.path).name, "candidates": Path(each.candidates).name}
            for each in self.dev
        ]
        return {**settings, "dev": dev}

    @property
    def share_prefix(self) -> bool:
        """Whether the tokens that the prompts of a query have in common run once."""
        return self.attn_implementation == "auto"

    @property
    def reading(self) -> dict[str, Any]:
        """What it sets of `nestling.models.reranker.RerankerSettings`; the rest is as the model's files say."""
        given = {"instruction": self.query_instruction, "prefix": self.prefix, "suffix": self.suffix}
        given |= dict(zip(("yes", "no"), self.answers, strict=False))
        lengths = {name: getattr(self, name) for name in ("query_max_length", "document_max_length")}
        return {name: value for name, value in given.items() if value is not None} | lengths
