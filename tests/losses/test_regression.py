"""Regression on a teacher's embeddings against the formula, written out as loops, and its projection against lstsq."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nestling.losses.regression import RIDGE, LeastSquares, regression
from small_batches import cosine

DIMS = [6, 3]


def random_texts(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[count, 6] embeddings and [count, 4] normalised ones of a teacher."""
    random = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, 6, generator=random, dtype=torch.float64)
    teacher = torch.nn.functional.normalize(torch.randn(count, 4, generator=random), dim=1)
    return embeddings, teacher


def fitted(embeddings: Tensor, teacher: Tensor, parts: int = 1, weight: float = 1.0) -> dict[int, Tensor]:
    squares = LeastSquares(DIMS)
    for own, of_teacher in zip(embeddings.chunk(parts), teacher.chunk(parts), strict=True):
        squares.add(own, of_teacher, weight)
    return squares.solve(squares.sums())


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_regression_equals_the_formula_written_as_loops(rows: int) -> None:
    """Value and gradient; the teacher has another dimension, and its embeddings are float32."""
    embeddings, teacher = random_texts(rows)
    embeddings.requires_grad_()
    projections = {dim: torch.randn(dim, 4, generator=torch.Generator().manual_seed(dim)) for dim in DIMS}
    weight = torch.rand(rows, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = embeddings.sum() * 0
    for dim, dim_weight in ((3, 0.5), (6, 2.0)):
        for i in range(rows):
            x = embeddings[i, :dim] / embeddings[i, :dim].norm()
            projected = torch.stack([x @ projections[dim][:, column].double() for column in range(4)])
            distance = projected / projected.norm() - teacher[i].double()
            expected = expected + dim_weight * weight[i] * distance.square().sum()
            assert distance.square().sum().item() == pytest.approx(
                2 - 2 * cosine(projected, teacher[i].double()).item(), abs=1e-6
            )
    actual = regression(embeddings, teacher, projections, weight, dims=DIMS, dim_weights=[2.0, 0.5])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-12)  # the teacher's length is 1 in float32
    ours, theirs = (torch.autograd.grad(each, embeddings)[0] for each in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_projection_has_the_least_squared_error_for_each_dimension() -> None:
    embeddings, teacher = random_texts(40)
    for dim, projection in fitted(embeddings, teacher).items():
        x = torch.nn.functional.normalize(embeddings[:, :dim], dim=1)
        ridge = (RIDGE * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(dim, dtype=x.dtype)
        target = torch.cat([teacher.double(), torch.zeros(dim, 4, dtype=x.dtype)])
        expected = torch.linalg.lstsq(torch.cat([x, ridge]), target).solution
        torch.testing.assert_close(projection.double(), expected, rtol=1e-5, atol=1e-6)


def test_texts_may_come_in_parts_and_be_fewer_than_dimensions() -> None:
    embeddings, teacher = random_texts(40)
    for whole, parts in zip(fitted(embeddings, teacher).values(), fitted(embeddings, teacher, 5).values(), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-7)
    for one, half in zip(
        fitted(embeddings, teacher).values(), fitted(embeddings, teacher, weight=0.5).values(), strict=True
    ):
        torch.testing.assert_close(one, half)
    assert all(each.isfinite().all() for each in fitted(*random_texts(2)).values())


def test_a_teacher_that_is_a_linear_image_is_met() -> None:
    embeddings, _ = random_texts(200)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    teacher = torch.nn.functional.normalize(embeddings[:, :4], dim=1).float()
    weight = torch.full((200,), 1 / 200)
    projections = fitted(embeddings, teacher)
    assert regression(embeddings, teacher, projections, weight, dims=[6]) < 0.05
    assert regression(embeddings, teacher, projections, weight, dims=[3]) < regression(
        embeddings, teacher.roll(1, dims=0), projections, weight, dims=[3]
    )


def test_regression_is_four_times_embed_distill_loss() -> None:
    """Theirs is the mean over queries and documents of 1 - cos; of embeddings that its model has normalised."""
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    stub: Any = torch.nn.Identity()
    peer = EmbedDistillLoss(stub, distance_metric="cosine")
    (queries, of_queries), (documents, of_documents) = random_texts(5, seed=1), random_texts(5, seed=2)
    projection = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    peer.projection = torch.nn.Linear(6, 4, bias=False, dtype=torch.float64)
    peer.projection.weight.data = projection.T
    columns = [torch.nn.functional.normalize(each, dim=1) for each in (queries, documents)]
    theirs = peer.compute_loss_from_embeddings(columns, [of_queries.double(), of_documents.double()])
    weight = torch.full((5,), 1 / 5, dtype=torch.float64)
    ours = sum(
        regression(each, of_teacher, {6: projection}, weight, dims=[6])
        for each, of_teacher in ((queries, of_queries), (documents, of_documents))
    )
    torch.testing.assert_close(ours, 4 * theirs)
