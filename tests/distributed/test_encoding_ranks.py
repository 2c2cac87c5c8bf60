"""Models whose forward pass is a collective: all ranks run equally many, whatever texts they have."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

import nestling.models.encoding
from nestling.batches.packing import Chunk
from nestling.models.embedder import Embedder
from nestling.models.encoding import encode_texts
from nestling.records import RetrievalSet
from nestling.records.summary import LoadSummary
from nestling.retrieval import evaluate_embedder
from nestling.retrieval.collectives import largest_over_ranks
from tiny import tiny_bert

CPU = torch.device("cpu")
COUNTS = [5, 0, 43]  # texts of each rank: one window, none, three
TEXTS = [" ".join(["alpha", "beta", "gamma"] * (1 + i % 5)) + f" {i}" for i in range(43)]


class Collective(Embedder):
    """A model whose forward passes wait for all ranks and are counted."""

    forwards = 0

    def forward(self, chunk: Chunk, *, in_place: bool = False) -> torch.Tensor:
        ranks = torch.ones(())
        dist.all_reduce(ranks)
        assert ranks.item() == dist.get_world_size()
        self.forwards += 1
        return super().forward(chunk, in_place=in_place)


def encode_in_step(rank: int, folder: Path) -> None:
    nestling.models.encoding.WINDOW = 16
    model = Collective.from_pretrained(folder / "bert")
    texts = TEXTS[: COUNTS[rank]]
    max_over_ranks = partial(largest_over_ranks, device=CPU)
    blocks = list(
        encode_texts(model, texts, prefix="", max_length=32, tokens_per_batch=40, max_over_ranks=max_over_ranks)
    )
    assert [rows.stop - rows.start for rows, _ in blocks] == {5: [5, 0, 0], 0: [0, 0, 0], 43: [16, 16, 11]}[len(texts)]
    torch.save(torch.cat([block for _, block in blocks]), folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(model.forwards))


def small_set() -> RetrievalSet:
    """One query and four documents of which two are equal: with three ranks, two have no query."""
    documents = ["alpha beta", "gamma", "alpha  beta", "delta " * 9]
    return RetrievalSet(
        name="small",
        split="test",
        document_ids=["d0", "d1", "d2", "d3"],
        documents=documents,
        query_ids=["q0"],
        queries=["alpha?"],
        relevant=[np.array([1])],
        gains=[np.array([1.0])],
        own_documents=np.array([-1] * 1),
        summary=LoadSummary("small", "BEIR", 1, 1),
    )


def evaluate_in_step(rank: int, folder: Path) -> None:
    model = Collective.from_pretrained(folder / "bert")
    values = evaluate_embedder(
        model, small_set(), [48], query_max_length=16, document_max_length=8, tokens_per_batch=8, equal_forwards=True
    )
    (folder / f"{rank}.json").write_text(json.dumps([values[48], model.forwards]))


@pytest.mark.timeout(120)
def test_evaluation_with_equal_forwards_equals_that_of_one_process(tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_bert(tmp_path / "bert"))
    run_ranks(3, evaluate_in_step, tmp_path)
    expected = evaluate_embedder(embedder, small_set(), [48], query_max_length=16, document_max_length=8)[48]
    for rank in range(3):
        # the query; then d0 and d3 in two chunks on rank 0
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [expected, 3]


@pytest.mark.timeout(120)
def test_ranks_run_equally_many_forwards(tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_bert(tmp_path / "bert"))
    run_ranks(3, encode_in_step, tmp_path)
    forwards = {json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)}
    assert len(forwards) == 1
    assert forwards.pop() > 3 * 3
    for rank, count in enumerate(COUNTS):
        expected = embedder.encode(TEXTS[:count], kind="document", max_length=32)
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, atol=2e-6, rtol=0)
