"""What rounding a trained model's merged weights to bfloat16 costs, in embeddings and on a test set.

    python scripts/bench/rounding.py --checkpoints runs/a/checkpoints/step-60,runs/b/checkpoints/step-60 --test DIR

For each checkpoint: the base, the merged weights in float32, and these rounded to the nearest number and
stochastically, all computed in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import EmbedConfig, parse_config, read_run, require, run
from nestling.console import table

if TYPE_CHECKING:
    from torch import Tensor

    from nestling.models.embedder import Embedder
    from nestling.records import RetrievalSet

HEADERS = ["weights", "cosine with merged, mean", "least", "1 - cosine beside training's", "nDCG@10"]


@dataclass(frozen=True)
class RoundingConfig:
    """Settings of scripts/bench/rounding.py.

    Args:
        checkpoints: Folders checkpoints/step-N of embedders' runs, with commas between.
        test: BEIR folder whose split test is measured.
        length: Tokens of a text.
    """

    checkpoints: list[str]
    test: str
    length: int = 64


def main() -> None:
    config = parse_config(RoundingConfig, __doc__)

    from nestling.records.beir import load_retrieval_set

    retrieval_set = load_retrieval_set(config.test, "test")
    for checkpoint in config.checkpoints:
        print(f"{checkpoint}\n{table(HEADERS, measure(Path(checkpoint), retrieval_set, config.length), digits=6)}")


def measure(checkpoint: Path, retrieval_set: "RetrievalSet", length: int) -> list[list[object]]:
    """A line for the base, the merged weights and each rounding of them."""
    import torch

    from nestling.export.embedder_expectation import base_files
    from nestling.export.probe_outputs import BaseWeights
    from nestling.models.merged_weights import MergedWeights
    from nestling.models.rounded_weights import RoundedWeights

    embedder = load(checkpoint)
    merged = MergedWeights(embedder.backbone)
    kinds: dict[str, Mapping[str, Tensor]] = {
        "merged": merged,
        "base": BaseWeights(base_files(embedder), embedder, merged),
        "nearest": RoundedWeights(merged, torch.bfloat16),
        "stochastic": RoundedWeights(merged, torch.bfloat16, "stochastic"),
    }
    results = {name: evaluate(embedder, weights, retrieval_set, length) for name, weights in kinds.items()}
    cosines = {name: (queries * results["merged"][0]).sum(dim=1) for name, (queries, _) in results.items()}
    learnt = (1 - cosines["base"]).mean()
    return [
        [name, cosine.mean().item(), cosine.min().item(), ((1 - cosine).mean() / learnt).item(), results[name][1]]
        for name, cosine in cosines.items()
    ]


def load(checkpoint: Path) -> "Embedder":
    from nestling.checkpoint import restore_tensors
    from nestling.training.data import recorded_reads, shared_instruction
    from nestling.training.models import for_export, load_embedder

    run_folder = checkpoint.resolve().parents[1]
    config = read_run(run_folder)
    require(isinstance(config, EmbedConfig), f"{checkpoint} is not of an embedder")
    assert isinstance(config, EmbedConfig)
    embedder = load_embedder(for_export(config, None), shared_instruction(recorded_reads(run_folder)))
    restore_tensors(checkpoint, embedder)
    return embedder


def evaluate(
    embedder: "Embedder", weights: "Mapping[str, Tensor]", retrieval_set: "RetrievalSet", length: int
) -> "tuple[Tensor, float]":
    """Embeddings [Q, D] float64 of the queries, and nDCG@10."""
    from nestling.models.merged_weights import computing_with
    from nestling.retrieval.evaluation import evaluate_embedder

    with computing_with(embedder, weights):
        queries = embedder.encode(retrieval_set.queries, kind="query", max_length=length).double()
        metrics = evaluate_embedder(
            embedder, retrieval_set, [embedder.dim], query_max_length=length, document_max_length=length
        )
    return queries, metrics[embedder.dim]["nDCG@10"]


if __name__ == "__main__":
    run(main)
