"""The contrastive loss against the formula, written out as loops, and against known mistakes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nestling.losses import chunked
from nestling.losses.guide import Guide
from nestling.losses.matryoshka import weighted_dims
from nestling.losses.negatives import NO_HARDNESS, BatchStructure, DocumentMask, Hardness, Terms
from nestling.losses.reference import info_nce
from small_batches import Batch, cosine, random_batch, random_guide, tuples

FORMS = pytest.mark.parametrize("loss", [info_nce, chunked.info_nce], ids=["reference", "chunked"])

SWITCHES: list[dict[str, Any]] = [
    {},
    {"score_margin": None},
    {"score_margin": None, "mask_identity": False},
    {"score_margin": 0.0, "mask_hard_negatives": True},
    {"score_margin": -0.2, "mask_hard_negatives": True},
    {"mask_identity": False, "mask_hard_negatives": True},
    {"terms": Terms(hard_negatives=False)},
    {"terms": Terms(query_query=False)},
    {"terms": Terms(document_document=False)},
    {"terms": Terms(query_document=False)},
    {"terms": Terms(document_query=True)},
    {"terms": Terms(document_document=False, document_query=True), "mask_document_document": "query"},
    {"terms": Terms(query_query=False, document_query=True), "mask_document_document": "none"},
    {"terms": Terms(other_hard_negatives=False)},
    {"terms": Terms(query_document=False, query_query=False, document_document=False), "mask_hard_negatives": True},
    {"terms": Terms(hard_negatives=False, query_document=False), "score_margin": None},
    {"mask_document_document": "query", "mask_hard_negatives": True},
    {"mask_document_document": "query", "score_margin": 0.0, "terms": Terms(query_document=False)},
    {"mask_document_document": "none", "score_margin": -0.2},
    {"hardness": Hardness(hard_negatives=5)},
    {"hardness": Hardness(in_batch_negatives=9), "mask_hard_negatives": True},
    {"hardness": Hardness(3, 2), "score_margin": None, "mask_identity": False},
    {"dim_weights": [0.5, 2.0, 1.25]},
]


def literal(
    batch: Batch,
    *,
    temperature: float,
    dims: list[int],
    dim_weights: list[float] | None = None,
    terms: Terms = Terms(),
    score_margin: float | None = 0.1,
    mask_document_document: DocumentMask = "positive",
    mask_hard_negatives: bool = False,
    mask_identity: bool = True,
    hardness: Hardness = NO_HARDNESS,
    guide: Guide | None = None,
) -> Tensor:
    """Eq. 1 written out: one (query, positive) pair, one dimension and one text at a time."""
    structure = batch.structure
    loss = torch.zeros((), dtype=torch.float64)
    for p, dim in enumerate(dims):
        q, d = batch.queries[:, :dim], batch.documents[:, :dim]
        for i, plus, weight in zip(
            structure.query.tolist(), structure.positive.tolist(), structure.weight.tolist(), strict=True
        ):
            target = cosine(q[i], d[plus])
            known = set(structure.known_positives[i].tolist()) - {-1} if mask_identity else set()
            z = torch.exp(target / temperature)

            def m(score: Tensor, target: Tensor = target) -> int:
                return 0 if score_margin is not None and score > target + score_margin else 1

            def false(a: str, k: int, b: str, j: int, i: int = i, plus: int = plus) -> bool:
                if guide is None:
                    return False
                own = guide.queries[i] @ guide.documents[plus]
                score = getattr(guide, a)[k] @ getattr(guide, b)[j]
                return bool(score > own - guide.margin * (abs(own) if guide.relative else 1))

            for j in range(len(d)):
                if j == plus or structure.document_text[j].item() in known:
                    continue
                if structure.owner[j] == i:
                    if structure.is_negative[j] and terms.hard_negatives and not false("queries", i, "documents", j):
                        score = cosine(q[i], d[j])
                        weight_of = torch.exp(hardness.hard_negatives * score.detach())
                        z = z + (m(score) if mask_hard_negatives else 1) * weight_of * torch.exp(score / temperature)
                elif terms.other_hard_negatives or not structure.is_negative[j]:
                    if terms.query_document and not false("queries", i, "documents", j):
                        score = cosine(q[i], d[j])
                        weight_of = torch.exp(hardness.in_batch_negatives * score.detach())
                        z = z + m(score) * weight_of * torch.exp(score / temperature)
                    if terms.document_document and not false("documents", plus, "documents", j):
                        score = cosine(d[plus], d[j])
                        masks = {"query": m(cosine(q[i], d[j])), "positive": m(score), "none": 1}
                        z = z + masks[mask_document_document] * torch.exp(score / temperature)
            for j in range(len(q)):
                own_texts = [structure.document_text[k].item() for k in range(len(d)) if structure.owner[k] == j]
                negative = [structure.is_negative[k].item() for k in range(len(d)) if structure.owner[k] == j]
                shared = any(text in known for text, no in zip(own_texts, negative, strict=True) if not no)
                same = mask_identity and structure.query_text[i] == structure.query_text[j]
                if j == i or same or shared:
                    continue
                if terms.query_query and not false("queries", i, "queries", j):
                    score = cosine(q[i], q[j])
                    z = z + m(score) * torch.exp(score / temperature)
                if terms.document_query and not false("documents", plus, "queries", j):
                    score = cosine(d[plus], q[j])
                    z = z + m(score) * torch.exp(score / temperature)
            factor = weight * (dim_weights[p] if dim_weights else 1)
            loss = loss + factor * -torch.log(torch.exp(target / temperature) / z)
    return loss


def gradients(loss: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    queries, documents = torch.autograd.grad(loss, [batch.queries, batch.documents])
    return queries, documents


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_equals_the_formula_written_as_loops(switches: dict[str, Any]) -> None:
    for seed in range(2):
        batch = random_batch(seed, size=4, dim=6)
        arguments = {"temperature": 0.2, "dims": [6, 2, 5], **switches}
        expected = literal(batch, **arguments)
        actual = info_nce(batch.queries, batch.documents, batch.structure, **arguments)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(gradients(actual, batch), gradients(expected, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("margin", "relative"), [(0.0, False), (0.2, False), (0.3, True)])
@pytest.mark.parametrize("rule", ["query", "positive"])
def test_a_guide_equals_the_formula_written_as_loops(rule: DocumentMask, margin: float, relative: bool) -> None:
    batch = random_batch(4, size=5, dim=6)
    guide = random_guide(batch, margin, relative)
    arguments: dict[str, Any] = {"temperature": 0.2, "dims": [6, 2], "mask_document_document": rule, "guide": guide}
    arguments["terms"] = Terms(document_query=True)
    expected = literal(batch, **arguments)
    actual = info_nce(batch.queries, batch.documents, batch.structure, **arguments)
    assert expected != literal(batch, **arguments | {"guide": None})
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients(actual, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Stub(torch.nn.Module):
    """A model that gives what stands under its name; with the attributes that GISTEmbedLoss looks at."""

    max_seq_length = 8

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.name]}


@FORMS
@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.3), ("relative", 0.4)])
def test_a_guide_equals_gist_embed_loss(loss: Any, negatives: int, strategy: Any, margin: float) -> None:
    """There positives are compared with positives alone, so that this term is left out where there are negatives."""
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss

    random = torch.Generator().manual_seed(5)
    embeddings = [torch.randn(12, 8, generator=random, dtype=torch.float64) for _ in range(2 + negatives)]
    guided = [F.normalize(torch.randn(12, 4, generator=random, dtype=torch.float64), dim=1) for _ in embeddings]
    guided[1] = F.normalize(guided[0] + 0.5 * guided[1], dim=1)
    queries, documents = embeddings[0].requires_grad_(), torch.cat(embeddings[1:]).requires_grad_()
    columns = zip([queries, *documents.split(12)], guided, strict=True)
    student, teacher = Stub("student"), Stub("teacher")
    peer = GISTEmbedLoss(
        student,  # type: ignore[arg-type]
        teacher,  # type: ignore[arg-type]
        temperature=0.1,
        margin_strategy=strategy,
        margin=margin,
        contrast_positives=not negatives,
    )
    expected = peer([{"student": own, "teacher": theirs} for own, theirs in columns], torch.empty(0))
    structure = replace(tuples(12, negatives), weight=torch.full((12,), 1 / 12, dtype=torch.float64))
    guide = Guide(guided[0], torch.cat(guided[1:]), margin, strategy == "relative")
    arguments: dict[str, Any] = {"temperature": 0.1, "dims": [8], "score_margin": None, "mask_identity": False}
    terms = Terms(document_document=not negatives)
    actual = loss(queries, documents, structure, terms=terms, guide=guide, **arguments)
    assert actual != loss(queries, documents, structure, terms=terms, **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    batch = Batch(queries, documents, structure)
    for ours, theirs in zip(gradients(actual, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


HARDNESS = {
    None: Hardness(),
    "hard_negatives": Hardness(5, 0),
    "in_batch_negatives": Hardness(0, 5),
    "all_negatives": Hardness(5, 5),
}


@FORMS
@pytest.mark.parametrize(("negatives", "mode"), [(0, None), *((2, mode) for mode in HARDNESS)])
def test_equals_sentence_transformers_where_the_definitions_coincide(loss: Any, negatives: int, mode: Any) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    random = torch.Generator().manual_seed(3)
    queries = torch.randn(6, 10, generator=random, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(6 * (1 + negatives), 10, generator=random, dtype=torch.float64, requires_grad=True)
    directions = ("query_to_doc", "query_to_query", "doc_to_doc")
    peer = MultipleNegativesRankingLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]
        scale=20.0,
        directions=directions,
        hardness_mode=mode,
        hardness_strength=5.0,
    )
    expected = sum(
        peer.compute_loss_from_embeddings([queries[:, :dim], *documents[:, :dim].split(6)], torch.empty(0))
        for dim in (10, 4)
    )
    structure = replace(tuples(6, negatives), weight=torch.full((6,), 1 / 6, dtype=torch.float64))
    masks = {"score_margin": None, "mask_identity": False}
    actual = loss(queries, documents, structure, temperature=0.05, dims=[4, 10], hardness=HARDNESS[mode], **masks)
    batch = Batch(queries, documents, structure)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(actual, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def shared_positive() -> tuple[Tensor, Tensor, BatchStructure]:
    """Two queries, each with its own copy of one positive."""
    positive = torch.tensor([3.0, 4.0])
    structure = replace(tuples(2, 0), document_text=torch.tensor([7, 7]), known_positives=torch.tensor([[7], [7]]))
    return torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True), positive.repeat(2, 1), structure


@FORMS
def test_queries_that_share_a_positive_do_not_repel_it_or_each_other(loss: Any) -> None:
    queries, documents, structure = shared_positive()
    masked = loss(queries, documents, structure, temperature=0.05, dims=[2])
    (gradient,) = torch.autograd.grad(masked, queries)
    assert masked.item() == 0
    assert not gradient.any()


@FORMS
def test_without_the_identity_mask_they_do(loss: Any) -> None:
    queries, documents, structure = shared_positive()
    terms = Terms(query_query=False, document_document=False)
    value = loss(queries, documents, structure, temperature=0.05, dims=[2], terms=terms, mask_identity=False)
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)


@FORMS
def test_equal_queries_do_not_repel_each_other(loss: Any) -> None:
    structure = replace(tuples(2, 0), query_text=torch.tensor([5, 5]), known_positives=torch.tensor([[0, 1], [0, 1]]))
    embeddings = torch.eye(2)
    assert loss(torch.ones(2, 2), embeddings, structure, temperature=0.05, dims=[2]).item() == 0


@FORMS
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_value_and_gradient_of_one_row_in_closed_form(loss: Any, temperature: float) -> None:
    structure = BatchStructure(
        query=torch.tensor([0]),
        positive=torch.tensor([0]),
        weight=torch.tensor([0.5]),
        owner=torch.tensor([0, 0]),
        is_negative=torch.tensor([False, True]),
        query_text=torch.tensor([0]),
        document_text=torch.tensor([1, 2]),
        known_positives=torch.tensor([[1]]),
    )
    query = torch.tensor([[0.8, 0.6]], dtype=torch.float64, requires_grad=True)
    documents = torch.eye(2, dtype=torch.float64)
    value = loss(query, documents, structure, temperature=temperature, dims=[2])
    (gradient,) = torch.autograd.grad(value, query)
    gap = (0.6 - 0.8) / temperature
    assert value.item() == pytest.approx(0.5 * math.log1p(math.exp(gap)), rel=1e-12)
    pull = 0.5 / (1 + math.exp(-gap)) / temperature  # dL/ds- = -dL/ds+
    # d(s- - s+)/dq, the part across q: (0.6, 0.8) and (0.8, 0.6) are what is left of the axes.
    expected = torch.tensor([[pull * (-0.8 * 0.6 - 0.6 * 0.6), pull * (0.8 * 0.8 + 0.6 * 0.8)]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@FORMS
def test_ranks_add_up_to_the_global_batch(loss: Any) -> None:
    batch = random_batch(5)
    structure, half = batch.structure, len(batch.structure.query) // 2
    whole = gradients(loss(batch.queries, batch.documents, structure, temperature=0.05, dims=[12]), batch)
    total = [torch.zeros_like(each) for each in whole]
    for rows in (slice(0, half), slice(half, None)):
        part = replace(
            structure, query=structure.query[rows], positive=structure.positive[rows], weight=structure.weight[rows]
        )
        for sum_, each in zip(
            total,
            gradients(loss(batch.queries, batch.documents, part, temperature=0.05, dims=[12]), batch),
            strict=True,
        ):
            sum_ += each
    for sum_, each in zip(total, whole, strict=True):
        torch.testing.assert_close(sum_, each, rtol=1e-10, atol=1e-12)


@FORMS
def test_negatives_are_pushed_away_and_only_positives_are_pulled(loss: Any) -> None:
    queries = torch.eye(4, 8, dtype=torch.float64, requires_grad=True)
    documents = torch.eye(8, dtype=torch.float64)[[4, 5, 6, 7] * 3].requires_grad_()  # 4 positives, 8 hard negatives
    terms = Terms(query_query=False, document_document=False)
    value = loss(queries, documents, tuples(4, 2), temperature=0.05, dims=[8], terms=terms)
    pull = gradients(value, Batch(queries, documents, tuples(4, 2)))[1] @ queries.detach().T  # [12, 4]
    positives = torch.eye(12, 4, dtype=torch.bool)
    assert (pull[positives] < 0).all()
    assert (pull[~positives] > 0).all()


@FORMS
def test_a_row_without_negatives_gives_neither_loss_nor_gradient(loss: Any) -> None:
    queries = torch.randn(1, 4, requires_grad=True)
    documents = torch.randn(1, 4)
    value = loss(queries, documents, tuples(1, 0), temperature=0.05, dims=[2, 4])
    assert value.item() == 0
    assert not torch.autograd.grad(value, queries)[0].any()


@FORMS
def test_an_embedding_of_zeros_has_a_finite_gradient(loss: Any) -> None:
    queries = torch.randn(3, 4)
    queries[1] = 0
    queries[2, :2] = 0
    queries.requires_grad_()
    value = loss(queries, torch.randn(6, 4), tuples(3, 1), temperature=0.05, dims=[2, 4])
    assert value.isfinite()
    assert torch.autograd.grad(value, queries)[0].isfinite().all()


@FORMS
def test_half_precision_is_upcast_and_autocast_left(loss: Any) -> None:
    batch = random_batch(1, dtype=torch.bfloat16)
    full = [each.detach().float() for each in (batch.queries, batch.documents)]
    expected = loss(*full, batch.structure, temperature=0.01, dims=[12])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(batch.queries, batch.documents, batch.structure, temperature=0.01, dims=[12])
    assert actual.dtype == torch.float32
    assert actual.item() == expected.item()
    assert all(each.dtype == torch.bfloat16 for each in gradients(actual, batch))


@FORMS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": [4, 4]}, r"dims are \[4, 4\].*each once"),
        ({"dims": [0, 4]}, "from 1 to"),
        ({"dims": [13]}, "the embedding's 12"),
        ({"dims": []}, "at least one"),
        ({"dims": [4, 12], "dim_weights": [1.0]}, "1 dim_weights for 2 dims"),
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"temperature": math.nan}, "the temperature is nan"),
    ],
)
def test_refuses_what_makes_no_sense(loss: Any, arguments: dict[str, Any], message: str) -> None:
    batch = random_batch(0)
    with pytest.raises(ValueError, match=message):
        loss(batch.queries, batch.documents, batch.structure, **{"temperature": 0.05, "dims": [12], **arguments})


def test_weights_are_sorted_with_their_dims() -> None:
    assert weighted_dims([4, 12, 2], [0.4, 1.2, 0.2], 12) == [(2, 0.2), (4, 0.4), (12, 1.2)]
