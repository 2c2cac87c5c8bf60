"""Settings of train/embed.py."""

import math
from dataclasses import dataclass, field
from typing import Literal

from nestling.config.attention import Attention
from nestling.config.checks import (
    changed,
    require,
    require_at_least,
    require_dims,
    require_positive,
    require_share,
)
from nestling.config.datasets import DevData
from nestling.config.prompts import require_prompts
from nestling.config.training import TrainingConfig, require_dev_and_attention

DocumentMask = Literal["query", "positive", "none"]
HardnessMode = Literal["hard_negatives", "in_batch_negatives", "all_negatives"]
GradedObjective = Literal["cosent", "angle", "cosine_similarity"]
Term = Literal["query_document", "query_query", "document_document", "document_query"]
BASE = "base"  # in place of a guide's directory: the model that is trained, as it is before


@dataclass(frozen=True)
class LossConfig:
    """The contrastive objective (docs/embedding.md).

    Args:
        temperature: Divides the cosines.
        terms: In-batch negatives: other documents and other queries for the query, other documents for its positive.
        other_hard_negatives: Whether the hard negatives of other rows are among those documents.
        score_margin: Mask a negative that scores above the positive by more than this; null: mask none.
        mask_document_document: Whose score of a document masks it in document_document; query: as in Qwen3's report.
        mask_hard_negatives: Whether that mask applies to a row's own hard negatives too.
        mask_identity: Mask known positives and equal queries by their text.
        hardness_mode: Negatives to which hardness_strength * cosine is added, as in sentence-transformers; null: none.
        hardness_strength: 5 in EmbeddingGemma, of hard_negatives; 9 in LLaVE, of in_batch_negatives.
        guide: Model, or folder of vectors, whose cosines mask false negatives; base: the model as it was; null: none.
        guide_margin: Mask what it scores above the positive less this.
        guide_margin_strategy: Whether that is a difference of cosines, or a fraction of the positive's.
        distillation_weight: Weight of the term that learns a teacher's scores; 0: no such term.
        distillation_objective: Their distribution, or the margins between positives and negatives.
        regression_weight: Weight of the term that learns the embeddings of teacher through a projection; 0: none.
        teacher: Model or folder of vectors: its cosines are these scores, of a batch; null: the scores of the data.
        teacher_temperature: Divides the teacher's scores.
        spread_out_weight: Weight of the mean squared cosines of queries, and of positives, with each other; 0: none.
        retention_weight: Weight of the term that keeps embeddings of random words as they were; 0: none.
        graded_objective: Of graded pairs: CoSENT and AnglE learn their order, cosine_similarity the scores themselves.
        graded_temperature: Temperature of CoSENT and AnglE.
    """

    temperature: float = 0.05
    terms: list[Term] = field(default_factory=lambda: ["query_document", "query_query", "document_document"])
    other_hard_negatives: bool = True
    score_margin: float | None = None
    mask_document_document: DocumentMask = "positive"
    mask_hard_negatives: bool = False
    mask_identity: bool = True
    hardness_mode: HardnessMode | None = None
    hardness_strength: float = 0.0
    guide: str | None = None
    guide_margin: float = 0.0
    guide_margin_strategy: Literal["absolute", "relative"] = "absolute"
    distillation_weight: float = 0.0
    distillation_objective: Literal["kl", "margin_mse"] = "kl"
    regression_weight: float = 0.0
    teacher: str | None = None
    teacher_temperature: float = 1.0
    spread_out_weight: float = 0.0
    retention_weight: float = 0.0
    graded_objective: GradedObjective = "cosent"
    graded_temperature: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "temperature", "teacher_temperature", "graded_temperature", section="loss.")
        weights = "distillation_weight", "regression_weight", "spread_out_weight", "retention_weight"
        require_at_least(0, self, *weights, "hardness_strength", section="loss.")
        require(
            not math.isnan(self.score_margin or 0), "loss.score_margin is nan, expected a number, or null for no mask"
        )
        require(
            (self.score_margin or 0) >= -2,
            f"loss.score_margin is {self.score_margin}, which masks every negative; expected at least -2",
        )
        require(len(set(self.terms)) == len(self.terms), f"loss.terms: {self.terms}, expected each term once")
        require(
            self.graded_objective != "cosine_similarity" or self.graded_temperature == 0.05,
            f"loss.graded_temperature is {self.graded_temperature:g}, and loss.graded_objective: cosine_similarity has "
            "no temperature; leave it out, or set cosent or angle",
        )
        self._check_terms()
        self._check_hardness()
        self._check_guide()
        self._check_teacher()

    def _check_terms(self) -> None:
        require(
            self.score_margin is not None
            or (self.mask_document_document == "positive" and not self.mask_hard_negatives),
            "loss.mask_document_document and loss.mask_hard_negatives say what loss.score_margin masks, which is null; "
            "set it too, 0.1 as in Qwen3's report",
        )
        require(
            self.mask_document_document == "positive" or "document_document" in self.terms,
            f"loss.mask_document_document is {self.mask_document_document}, and says what is masked in the term "
            "document_document, which loss.terms lacks; name that term, or leave this out (its default is positive)",
        )
        require(
            self.score_margin is None or bool(self.terms) or self.mask_hard_negatives,
            f"loss.score_margin is {self.score_margin}, and masks nothing: loss.terms is empty, and "
            "loss.mask_hard_negatives off; set it to null, or name a term",
        )
        require(
            self.other_hard_negatives or not {"query_document", "document_document"}.isdisjoint(self.terms),
            "loss.other_hard_negatives: false leaves documents out of the terms query_document and document_document, "
            "and loss.terms has neither; leave this out",
        )

    def _check_guide(self) -> None:
        require(-2 <= self.guide_margin <= 2, f"loss.guide_margin is {self.guide_margin:g}, expected -2 to 2")
        require(
            self.guide is not None or (self.guide_margin == 0 and self.guide_margin_strategy == "absolute"),
            "loss.guide_margin and loss.guide_margin_strategy are of a guide, and loss.guide names none",
        )

    def _check_teacher(self) -> None:
        require(
            self.teacher is None or self.distillation_weight > 0 or self.regression_weight > 0,
            "loss.teacher is what a loss.distillation_weight or loss.regression_weight above 0 learns from; both are 0",
        )
        require(
            self.teacher is not None or self.regression_weight == 0,
            "loss.regression_weight learns the embeddings of loss.teacher, which names none",
        )
        require(
            self.distillation_objective == "kl" or self.needs_teacher_scores,
            "loss.distillation_objective: margin_mse needs teacher scores in the data, a loss.distillation_weight "
            "above 0, and no loss.teacher",
        )
        require(
            self.distillation_weight > 0 or self.teacher_temperature == 1,
            f"loss.teacher_temperature is {self.teacher_temperature:g}, and divides the scores that a "
            "loss.distillation_weight above 0 learns; set that too, or leave it out",
        )
        require(
            self.teacher is None or self.distillation_weight == 0 or self.teacher_temperature < 1,
            f"loss.teacher_temperature is {self.teacher_temperature:g}, which makes the cosines of loss.teacher nearly "
            f"equal; expected less than 1, {self.temperature:g} as loss.temperature say",
        )

    @property
    def needs_teacher_scores(self) -> bool:
        """Whether the teacher scores of the data are learnt from."""
        return self.distillation_weight > 0 and self.teacher is None

    def _check_hardness(self) -> None:
        require(
            (self.hardness_mode is None) == (self.hardness_strength == 0),
            f"loss.hardness_mode is {self.hardness_mode} and loss.hardness_strength {self.hardness_strength:g}; "
            "expected a mode with a strength above 0, or null with 0",
        )
        require(
            self.hardness_mode != "in_batch_negatives" or "query_document" in self.terms,
            "loss.hardness_mode: in_batch_negatives weights the term query_document, which loss.terms lacks",
        )


@dataclass(frozen=True)
class RefreshConfig:
    """Hard negatives mined again during training, by the model as it is then (docs/mining.md).

    Args:
        steps: Mine every this many steps; 0: after each epoch, null: never.
        corpus: BEIR folder or corpus.jsonl to mine in; by default a dataset's own folder, or all its documents.
        depth: Candidates found for a query.
        max_score_ratio: Keep a candidate only below this fraction of the lowest positive's score; null: no such rule.
        among: Draw among this many candidates, those that score highest.
    """

    steps: int | None = None
    corpus: str | None = None
    depth: int = 100
    max_score_ratio: float | None = 0.95
    among: int = 10

    def __post_init__(self) -> None:
        require_at_least(0, self, "steps", section="refresh.")
        require_at_least(1, self, "depth", "among", section="refresh.")
        require_share(self, "max_score_ratio", section="refresh.")
        unused = changed(self, "refresh.")
        require(
            self.steps is not None or not unused,
            f"{', '.join(unused)}: of negatives that are mined again, and refresh.steps is null; set it too, 0 for "
            "after each epoch",
        )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(TrainingConfig):
    """Fine-tune an embedding model.

    Args:
        dev: Retrieval sets for evaluation during training; on the command line also paths with commas between.
        attn_implementation: As in transformers; auto: what suits the model; varlen: causal models without padding.
        pooling: How token states become one embedding; by default what the model's files say.
        query_prompt: Text before queries, "" for none, {instruction} for theirs; by default as the model's files say.
        document_prompt: Text before documents, "" for none; by default as the model's files say.
        activation_memory: Gigabytes of each process for kept activations; by default half of what is free.
        max_seq_length: Tokens at which dev sets and final/ cut texts; by default the model's own limit.
        matryoshka_dims: Dimensions to train besides the full one, "" for none; by default its halves down to 64.
        matryoshka_weights: Weight of each of matryoshka_dims in the loss; by default 1.
        loss: The objective.
        refresh: Hard negatives mined again during training.
        interpolate: Move the weights in final/ back towards the base's: as is best on dev, or to a share, as is safe.
    """

    dev: list[DevData] = field(default_factory=list)
    attn_implementation: Attention = "auto"
    pooling: Literal["last", "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean"] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    activation_memory: float | None = None
    max_seq_length: int | None = None
    matryoshka_dims: list[int] | None = None
    matryoshka_weights: list[float] = field(default_factory=list)
    loss: LossConfig = LossConfig()
    refresh: RefreshConfig = RefreshConfig()
    interpolate: bool | float = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 2, f"batch_size is {self.batch_size}; in-batch negatives need at least 2 queries")
        require_dev_and_attention(self, bool(self.dev or self.dev_share), self.attn_implementation)
        instructions = [*(each.instruction for each in self.train), *(each.instruction for each in self.dev)]
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction, *instructions])
        require_at_least(0, self, "activation_memory")
        require_at_least(1, self, "max_seq_length")
        require(
            bool(self.loss.terms) or self.num_negatives > 0,
            "loss.terms is empty and num_negatives is 0, which leaves no negative; name a term, query_document say",
        )
        require(
            self.loss.hardness_mode != "hard_negatives" or self.num_negatives > 0,
            "loss.hardness_mode: hard_negatives weights a row's own hard negatives, and num_negatives is 0",
        )
        self._check_dims()
        self._check_share()
        if self.refresh.steps is not None:
            self._check_refresh()

    def _check_dims(self) -> None:
        dims, weights = self.matryoshka_dims or [], self.matryoshka_weights
        require_dims(dims, name="matryoshka_dims")
        require(
            all(0 < each < math.inf for each in weights), f"matryoshka_weights: {weights}, expected numbers above 0"
        )
        require(
            not weights or len(weights) == len(dims),
            f"matryoshka_weights has {len(weights)} values and matryoshka_dims {len(dims)}; expected as many",
        )

    def _check_share(self) -> None:
        share = self.fixed_share
        require(
            share is None or 0 < share < 1,
            f"interpolate is {share}; expected true, false, or a share of the trained weights between 0 and 1",
        )
        require(
            share is None or self.tuning != "qlora",
            f"interpolate: a share of {share} needs whole weights, and those of qlora are quantised; set true or false",
        )

    @property
    def fixed_share(self) -> float | None:
        """The share of the trained weights that goes into final/; None where dev chooses it, or all of them do."""
        return None if isinstance(self.interpolate, bool) else float(self.interpolate)

    def _check_refresh(self) -> None:
        require(
            1 <= self.num_negatives <= self.refresh.among,
            f"num_negatives is {self.num_negatives}, and refresh.among {self.refresh.among}: a refresh draws negatives "
            "among so many; expected 1 to that number",
        )
        require(
            self.loss.guide is None,
            "refresh.steps: loss.guide encodes the documents of the data before training; set loss.guide to null",
        )
        require(
            self.loss.distillation_weight == 0 and self.loss.regression_weight == 0,
            "refresh.steps: mined negatives have no teacher; set loss.distillation_weight and "
            "loss.regression_weight to 0",
        )

    @property
    def guide(self) -> str | None:
        """The guide: a model, which is `model` itself where `loss.guide` is base, a folder of vectors, or None."""
        return self.model if self.loss.guide == BASE else self.loss.guide

    @property
    def measures_by_default(self) -> bool:
        return not self.dev

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.query_max_length, self.document_max_length)

    def most_tokens(self, ranks: int) -> int:
        """Tokens of all texts of a step on one of so many ranks, at the most."""
        documents = (self.num_positives + self.num_negatives) * self.document_max_length
        return self.batch_size // ranks * (self.query_max_length + documents)
