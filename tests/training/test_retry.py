"""The step of a reranker on a device that fills."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.batches.packing import AnyChunk
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.losses.reranker import listwise, pointwise
from nestling.models.reranker import Reranker
from nestling.records import load_records
from retried import rerank_retry, rerank_step

BUDGET = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"query": f"query {i}", "positives": [f"right {i}"], "negatives": ["wrong " * n for n in range(1, 2 + i)]}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Small:
    """A device that runs out of memory with chunks of more than `limit` positions."""

    def __init__(self, reranker: Reranker, limit: int) -> None:
        self.forward, self.limit = reranker.forward, limit

    def __call__(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        if chunk.positions > self.limit:
            raise torch.OutOfMemoryError("a full device")
        return self.forward(chunk, in_place=in_place)


def alone(logits: Tensor, labels: ChunkLabels, batch: RerankBatch) -> Tensor:
    return pointwise(logits[:, 0], labels.targets, positive_weight=2.0).sum() / batch.pairs


def compared(logits: Tensor, labels: ChunkLabels, batch: RerankBatch) -> Tensor:
    present, positive = labels.group >= 0, labels.targets[labels.group] > 0.5
    return listwise(logits[:, 0][labels.group], positive, present, temperature=1.0).sum() / batch.queries


def collator_of(reranker: Reranker, data: Path, *, whole_groups: bool) -> RerankCollator:
    return RerankCollator(
        [Source(load_records(data, progress=False))],
        RowSampler(positives=1, negatives=7, seed=0),
        reranker.pairs,
        query_max_length=32,
        document_max_length=32,
        chunk_tokens=BUDGET,
        share_prefix=True,
        padding_free=True,
        whole_groups=whole_groups,
    )


def gradients(reranker: Reranker) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in reranker.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("loss", [alone, compared])
def test_a_full_device_gets_smaller_chunks(
    loss: object, qwen3_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(loss)
    reranker = Reranker.from_pretrained(qwen3_base)
    collator = collator_of(reranker, data, whole_groups=loss is compared)
    batch = collator[BatchIndices(0, [0, 1, 2, 3], [0] * 4)]
    backend = Plain(reranker, adamw(reranker, learning_rate=1e-3, weight_decay=0.0))
    expected_loss = rerank_step(rerank_retry(backend, collator, print), batch, loss)
    expected = gradients(reranker)
    reranker.zero_grad()

    said: list[str] = []
    retry = rerank_retry(backend, collator, said.append)
    most = max(chunk.positions for chunk in batch.chunks)
    monkeypatch.setattr(reranker, "forward", Small(reranker, most - 1))
    torch.testing.assert_close(rerank_step(retry, batch, loss), expected_loss)
    (line,) = said
    positions = int(line.removeprefix("out of memory; the step is repeated in chunks of at most ").split()[0])
    assert positions == max(each.positions for each in collator.in_smaller_chunks(batch, retry.halvings).chunks) < most
    for name, gradient in gradients(reranker).items():
        torch.testing.assert_close(gradient, expected[name])
    rerank_step(retry, batch, loss)  # in smaller chunks from the beginning
    assert len(said) == 1


def test_what_cannot_be_cut_is_told(qwen3_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker.from_pretrained(qwen3_base)
    collator = collator_of(reranker, data, whole_groups=True)
    batch = collator[BatchIndices(0, [0, 3], [0, 0])]
    monkeypatch.setattr(reranker, "forward", Small(reranker, 20))
    backend = Plain(reranker, adamw(reranker, learning_rate=1e-3, weight_decay=0.0))
    with pytest.raises(ValueError, match=r"out of memory with a chunk of \d+ positions, which cannot be split"):
        rerank_step(rerank_retry(backend, collator, print), batch, compared)


@pytest.mark.parametrize("independent", [True, False])
def test_ranks_end_the_step_together_where_they_can(
    independent: bool, qwen3_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = Reranker.from_pretrained(qwen3_base)
    collator = collator_of(reranker, data, whole_groups=False)
    batch = collator[BatchIndices(0, [0, 1, 2, 3], [0] * 4)]
    backend = Plain(reranker, adamw(reranker, learning_rate=1e-3, weight_decay=0.0))
    backend.ranks, backend.independent = 2, independent
    retry = rerank_retry(backend, collator, print)
    monkeypatch.setattr(reranker, "forward", Small(reranker, 20))
    if independent:
        assert rerank_step(retry, batch, alone).isfinite()
        assert retry.ran_out
    else:
        with pytest.raises(ValueError, match=r"a rank ran out of memory .* resume with --chunk_tokens"):
            rerank_step(retry, batch, alone)
