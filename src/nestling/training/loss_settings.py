"""The arguments of the contrastive loss that settings stand for."""

from collections.abc import Callable
from functools import partial
from typing import TypedDict

from torch import Tensor

from nestling.config import LossConfig
from nestling.losses.graded import angle, cosent, cosine_similarity
from nestling.losses.guide import Guide
from nestling.losses.negatives import Hardness, Terms


class Nested(TypedDict):
    """The Matryoshka dimensions and their weights, as arguments of every loss."""

    dims: list[int]
    dim_weights: list[float]


class Temperatures(TypedDict):
    """The temperatures of distillation."""

    temperature: float
    teacher_temperature: float


def terms_of(loss: LossConfig, in_batch: bool) -> Terms:
    """The terms of the denominator; a dataset without in-batch negatives has only its own hard negatives."""
    return Terms(
        query_document="query_document" in loss.terms and in_batch,
        query_query="query_query" in loss.terms and in_batch,
        document_document="document_document" in loss.terms and in_batch,
        document_query="document_query" in loss.terms and in_batch,
        other_hard_negatives=loss.other_hard_negatives,
    )


def hardness_of(loss: LossConfig) -> Hardness:
    """The hardness weights, each of the kind of negatives that the mode names."""
    hard_negatives, in_batch_negatives = (
        loss.hardness_strength if loss.hardness_mode in (each, "all_negatives") else 0.0
        for each in ("hard_negatives", "in_batch_negatives")
    )
    return Hardness(hard_negatives, in_batch_negatives)


def graded_loss(loss: LossConfig) -> Callable[..., Tensor]:
    """The loss of graded pairs, of both sides, their scores and `Nested`."""
    if loss.graded_objective == "cosine_similarity":
        return cosine_similarity
    return partial({"cosent": cosent, "angle": angle}[loss.graded_objective], temperature=loss.graded_temperature)


def guide_of(loss: LossConfig, vectors: tuple[Tensor, Tensor] | None) -> Guide | None:
    """The guide, by its embeddings of a batch's queries and documents; None without them."""
    if vectors is None:
        return None
    return Guide(*vectors, margin=loss.guide_margin, relative=loss.guide_margin_strategy == "relative")
