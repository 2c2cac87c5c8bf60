"""The chunked form of the contrastive loss against the reference: value and gradient, precision, memory."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.losses import chunked, reference, row_blocks
from nestling.losses.negatives import BatchStructure, DocumentMask, Hardness, Terms
from small_batches import Batch, random_batch, random_guide, tuples


def evaluate(loss: Any, batch: Batch, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients."""
    value = loss(batch.queries, batch.documents, batch.structure, **arguments)
    return value.detach(), *torch.autograd.grad(value, [batch.queries, batch.documents])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows."""
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", 3)


switches = st.booleans()


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 9),
    few_texts=switches,
    terms=st.builds(Terms, switches, switches, switches, switches, switches, switches),
    score_margin=st.sampled_from([None, -0.1, 0.1, 0.4]),  # not 0: equal texts would tie with the threshold
    mask_document_document=st.sampled_from(["query", "positive", "none"]),
    mask_hard_negatives=switches,
    mask_identity=switches,
    hardness=st.sampled_from([Hardness(), Hardness(5), Hardness(0, 9), Hardness(9, 9)]),
    guided=st.sampled_from([None, (0.0, False), (0.2, False), (-0.5, True)]),
    temperature=st.sampled_from([0.01, 0.05, 0.5]),
    dims=st.sampled_from([[12], [3, 12, 7], [1, 2], [8, 4]]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_equals_the_reference_in_float64(
    seed: int,
    size: int,
    few_texts: bool,
    temperature: float,
    dims: list[int],
    guided: tuple[float, bool] | None,
    **arguments: Any,
) -> None:
    batch = random_batch(seed, size=size, texts=8 if few_texts else 500)
    arguments["guide"] = None if guided is None else random_guide(batch, *guided)
    arguments |= {"temperature": temperature, "dims": dims, "dim_weights": [0.5, 2.0, 1.0][: len(dims)]}
    expected = evaluate(reference.info_nce, batch, **arguments)
    actual = evaluate(chunked.info_nce, batch, **arguments)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("small_blocks")
def test_a_guide_in_blocks_of_rows() -> None:
    batch = random_batch(11, size=10, texts=30)
    arguments: dict[str, Any] = {"temperature": 0.05, "dims": [4, 12], "guide": random_guide(batch, 0.1, False)}
    arguments["mask_document_document"] = "query"
    expected = evaluate(reference.info_nce, batch, **arguments)
    assert expected[0] != evaluate(reference.info_nce, batch, **arguments | {"guide": None})[0]
    for ours, theirs in zip(evaluate(chunked.info_nce, batch, **arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("score_margin", [None, 0.1])
def test_blocks_that_do_not_divide_the_rows(score_margin: float | None) -> None:
    batch = random_batch(11, size=10, texts=30)
    assert len(batch.structure.query) % 3
    arguments: dict[str, Any] = {"temperature": 0.05, "dims": [4, 12, 9], "score_margin": score_margin}
    expected = evaluate(reference.info_nce, batch, **arguments)
    for ours, theirs in zip(evaluate(chunked.info_nce, batch, **arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def pairs(dtype: torch.dtype, size: int = 64, dim: int = 96) -> Batch:
    """Queries whose positives resemble them, and two hard negatives each that resemble them less."""
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(size, dim, generator=random, dtype=torch.float64)
    noise = torch.randn(3, size, dim, generator=random, dtype=torch.float64)
    documents = torch.cat([queries + noise[0], 0.4 * queries + noise[1], 0.3 * queries + noise[2]])
    return Batch(queries.to(dtype).requires_grad_(), documents.to(dtype).requires_grad_(), tuples(size, 2))


def error(actual: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative error of the value and of each gradient, by norm."""
    return [float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in zip(actual, exact, strict=True)]


@pytest.mark.parametrize("arguments", [{}, {"score_margin": None, "mask_identity": False}], ids=["masks", "no masks"])
def test_float32_is_within_1e_5_at_temperature_005(arguments: dict[str, Any]) -> None:
    arguments = {"temperature": 0.05, "dims": [96, 48, 24], **arguments}
    exact = evaluate(reference.info_nce, pairs(torch.float64), **arguments)
    assert max(error(evaluate(chunked.info_nce, pairs(torch.float32), **arguments), exact)) < 1e-5


@pytest.mark.parametrize("arguments", [{}, {"score_margin": None, "mask_identity": False}], ids=["masks", "no masks"])
def test_float32_loses_at_most_twice_the_naive_error_at_temperature_001(arguments: dict[str, Any]) -> None:
    arguments = {"temperature": 0.01, "dims": [96, 48, 24], **arguments}
    # The float64 of the rounded embeddings, so that only the computation differs.
    rounded = pairs(torch.float32)
    exact_inputs = Batch(
        rounded.queries.detach().double().requires_grad_(),
        rounded.documents.detach().double().requires_grad_(),
        rounded.structure,
    )
    exact = evaluate(reference.info_nce, exact_inputs, **arguments)
    naive = error(evaluate(reference.info_nce, rounded, **arguments), exact)
    ours = error(evaluate(chunked.info_nce, rounded, **arguments), exact)
    for a, b in zip(ours, naive, strict=True):
        assert a <= 2 * b + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hard_negative_far_above_the_positive(dtype: torch.dtype) -> None:
    """At a temperature of 0.01 the scores lie 200 apart: e^200 is not a float32."""
    queries = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    documents = torch.tensor([[-1.0, 1e-3], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    batch = Batch(queries, documents, tuples(1, 1))
    expected = evaluate(reference.info_nce, batch, temperature=0.01, dims=[2])
    actual = evaluate(chunked.info_nce, batch, temperature=0.01, dims=[2])
    assert expected[0].item() == pytest.approx(200, rel=1e-5)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rule", ["query", "none"])
def test_a_document_near_the_positive_that_the_query_does_not_mask(rule: DocumentMask) -> None:
    """The other row's document equals the positive, 200 above the positive's own score, and the query scores it low."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    documents = torch.tensor([[-1.0, 1e-3], [-1.0, 0.0]], requires_grad=True)
    batch = Batch(queries, documents, tuples(2, 0))
    arguments: dict[str, Any] = {"mask_document_document": rule, "mask_hard_negatives": True, "mask_identity": False}
    expected = evaluate(reference.info_nce, batch, temperature=0.01, dims=[2], **arguments)
    actual = evaluate(chunked.info_nce, batch, temperature=0.01, dims=[2], **arguments)
    assert expected[0].item() == pytest.approx(150, rel=0.01)  # 200 of the first row, 100 of the second
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # of gradients up to 50


@pytest.mark.parametrize("hardness", [Hardness(30, 30), Hardness(2000, 0)], ids=str)
def test_hardness_that_no_float32_holds_unshifted(hardness: Hardness) -> None:
    batch = pairs(torch.float32, size=8)
    arguments: dict[str, Any] = {"temperature": 0.05, "dims": [96], "mask_hard_negatives": True, "hardness": hardness}
    expected = evaluate(reference.info_nce, batch, **arguments)
    for ours, theirs in zip(evaluate(chunked.info_nce, batch, **arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1e-4, 1e3, 1e6])
def test_masked_pairs_stay_masked_whatever_the_length_of_embeddings(length: float) -> None:
    batch = random_batch(3, dtype=torch.float32)
    scaled = Batch(
        (batch.queries.detach() * length).requires_grad_(),
        (batch.documents.detach() * length).requires_grad_(),
        batch.structure,
    )
    expected = evaluate(reference.info_nce, batch, temperature=0.05, dims=[12, 6])
    value, queries, documents = evaluate(chunked.info_nce, scaled, temperature=0.05, dims=[12, 6])
    for ours, theirs in zip((value, queries * length, documents * length), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_embedding_below_the_norm_floor() -> None:
    batch = random_batch(4)
    with torch.no_grad():
        batch.queries[0] *= 1e-9
        batch.documents[1, :6] = 0
    expected = evaluate(reference.info_nce, batch, temperature=0.05, dims=[12, 6])
    for ours, theirs in zip(evaluate(chunked.info_nce, batch, temperature=0.05, dims=[12, 6]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_scaled_and_can_be_computed_twice() -> None:
    batch = random_batch(6)
    _, expected, _ = evaluate(chunked.info_nce, batch, temperature=0.05, dims=[12])
    value = 3 * chunked.info_nce(batch.queries, batch.documents, batch.structure, temperature=0.05, dims=[12])
    for _ in range(2):
        (actual,) = torch.autograd.grad(value, batch.queries, retain_graph=True)
        torch.testing.assert_close(actual, 3 * expected, rtol=1e-12, atol=0)


def test_only_documents_may_require_gradients() -> None:
    batch = random_batch(6)
    _, _, expected = evaluate(chunked.info_nce, batch, temperature=0.05, dims=[12])
    value = chunked.info_nce(batch.queries.detach(), batch.documents, batch.structure, temperature=0.05, dims=[12])
    torch.testing.assert_close(torch.autograd.grad(value, batch.documents)[0], expected, rtol=0, atol=0)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(6)
    expected = chunked.info_nce(batch.queries, batch.documents, batch.structure, temperature=0.05, dims=[12, 3])

    def never(*_: object) -> None:
        raise AssertionError("a gradient is computed")

    for name in ("_differentiate", "_multiply", "_subtract_radial"):
        monkeypatch.setattr(chunked.ChunkedLoss, name, never)
    with torch.no_grad():
        actual = chunked.info_nce(batch.queries, batch.documents, batch.structure, temperature=0.05, dims=[12, 3])
    assert not actual.requires_grad
    assert actual.item() == expected.item()


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_no_tensor_has_the_size_of_queries_times_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", 2)
    queries = torch.randn(64, 4, requires_grad=True)
    documents = torch.randn(128, 4, requires_grad=True)
    structure: BatchStructure = tuples(64, 1)
    with Largest() as largest:
        chunked.info_nce(queries, documents, structure, temperature=0.05, dims=[4, 2]).backward()
    assert 0 < largest.elements < 64 * 128


@pytest.mark.parametrize(("dims", "factor"), [([16], 1), ([16, 4], 4)])
def test_buffers_hold_at_most_the_allowed_elements(
    dims: list[int], factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_blocks, "BUFFER_ELEMENTS", 64)
    monkeypatch.setattr(row_blocks, "BUFFERS_TO_EMBEDDINGS", factor)
    batch = pairs(torch.float64, size=256, dim=16)
    expected = evaluate(reference.info_nce, batch, temperature=0.05, dims=dims)
    embeddings, columns = 1024 * 16, 1024 + 768
    row = (len(dims) + 2) * columns
    assert 1 < row_blocks.block_rows(row, embeddings) < row_blocks.BLOCK_ROWS
    with Largest() as largest:
        actual = evaluate(chunked.info_nce, batch, temperature=0.05, dims=dims)
    assert largest.elements <= factor * embeddings
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_blocks_have_fewer_rows_only_where_batches_are_large() -> None:
    def rows(pairs: int, dim: int, prefixes: int) -> int:
        return row_blocks.block_rows((prefixes + 2) * 3 * pairs, 2 * pairs * dim)

    assert rows(8192, 128, 3) == rows(4096, 1024, 7) == row_blocks.BLOCK_ROWS
    assert rows(2**14, 128, 3) == rows(2**20, 128, 3) == 68
    assert rows(2**20, 1024, 7) == row_blocks.BLOCK_ROWS


def test_a_non_finite_embedding_shows_in_the_loss() -> None:
    batch = random_batch(6)
    with torch.no_grad():
        batch.documents[1, 3] = torch.nan
    value = chunked.info_nce(batch.queries, batch.documents, batch.structure, temperature=0.05, dims=[12, 3])
    assert value.isnan()
