"""The gradient of several ranks is the gradient of one process on the global batch: nothing times or over W."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from ranks import ROOT, run_ranks

from nestling.batching import Draw, Plan, Source
from nestling.collation import Collator
from nestling.config import LossConfig
from nestling.embedder import Embedder
from nestling.records import load_records
from tiny import tiny_qwen3

Gradients = dict[str, torch.Tensor]
DRAW = Draw(positives=2, negatives=2, seed=0)
DIMS = {64: 1.0, 16: 0.5}

RANKED = [
    {"query": "one", "positives": ["a", "b"], "negatives": ["x"], "positive_scores": [3, 2], "negative_scores": [1]},
    {"query": "two", "positives": ["b"], "negatives": ["y", "z"], "positive_scores": [5], "negative_scores": [0, 1]},
    {"query": "three", "positives": ["c"], "negatives": [], "positive_scores": [4], "negative_scores": []},
    {"query": "four", "positives": ["d"], "negatives": ["x"], "positive_scores": [1], "negative_scores": [0]},
]
GRADED = [{"sentence1": f"left {i}", "sentence2": f"right {i % 3}", "score": (i * 7 % 4) / 4} for i in range(4)]


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embed_recipe", ROOT / "train" / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(folder: Path, kind: str, rank: int, world_size: int) -> Gradients:
    """Mean over ranks of the gradient of W times this rank's share, as data parallel training has it."""
    embedder = Embedder.from_pretrained(folder / "model", dtype=torch.float64)
    collator = Collator(
        [Source(load_records(folder / f"{'graded' if kind == 'graded' else 'ranked'}.jsonl", progress=False))],
        DRAW,
        embedder.text_tokenizer,
        embedder.prompts,
        query_max_length=32,
        document_max_length=32,
        chunk_tokens=64,
        teacher=kind == "distilled",
        rank=rank,
        world_size=world_size,
    )
    loss = LossConfig(temperature=0.2, distillation=0.7 if kind == "distilled" else 0.0)
    share = recipe().loss_share(embedder, collator[Plan(0, [0, 1, 2, 3], [0, 0, 0, 0])], loss, DIMS)
    (share * world_size).backward()
    found = {name: each.grad for name, each in embedder.named_parameters() if each.grad is not None}
    if world_size > 1:
        for gradient in found.values():
            dist.all_reduce(gradient)
            gradient /= world_size
    return found


def on_a_rank(rank: int, folder: Path) -> None:
    for kind in ("contrastive", "distilled", "graded"):
        found = gradients(folder, kind, rank, 2)
        if rank == 0:
            torch.save(found, folder / f"{kind}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "model").mkdir()
    tiny_qwen3(folder / "model")
    for name, rows in (("ranked", RANKED), ("graded", GRADED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_ranks(2, on_a_rank, folder)
    return folder


@pytest.mark.parametrize("kind", ["contrastive", "distilled", "graded"])
def test_two_ranks_have_the_gradient_of_one(two_ranks: Path, kind: str) -> None:
    expected = gradients(two_ranks, kind, 0, 1)
    found = torch.load(two_ranks / f"{kind}.pt")
    assert found.keys() == expected.keys()
    together = torch.cat([each.flatten() for each in found.values()])
    alone = torch.cat([each.flatten() for each in expected.values()])
    assert alone.norm() > 1e-3
    assert (together.norm() / alone.norm()).item() == pytest.approx(1.0, rel=1e-5)
    assert ((together - alone).norm() / alone.norm()).item() < 1e-5
