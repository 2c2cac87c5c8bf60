"""Train the same model on the same pairs through Nestling and through sentence-transformers, and compare.

python scripts/bench/training.py --data DIR --model MODEL --output runs/bench-nl2bash --dims 384,128,64,32

The peer is SentenceTransformerTrainer with MatryoshkaLoss(MultipleNegativesRankingLoss), its defaults else. Both take
the same rows, batch size, steps, learning rate, schedule, warm-up, dimensions, lengths and float32, one after the
other in one run, and are measured by the same code on the same test split. Times are of the training loop alone: no
imports, no loading, no evaluation. Ours has no dropout, a weight decay of 0.01 and two processes that tokenise, its
defaults, unless --ours says otherwise.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from peer import PEER, train_peer

from nestling.config import parse_config, require, require_dims, run
from nestling.console import table

T = TypeVar("T")
Scores = dict[str, dict[int, float]]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TrainingBenchConfig:
    """Settings of scripts/bench/training.py.

    Args:
        data: BEIR folder with a train and a test split.
        model: Directory of the model to train.
        output: A folder for the runs and results; must not exist.
        dims: Matryoshka dimensions.
        batch_size: Queries in a batch.
        learning_rate: Peak learning rate.
        max_length: Tokens of a text, in training and evaluation.
        pairs: Train on so many pairs, drawn at random with a fixed seed; on all by default.
        ours: Further flags of train/embed.py, one string; what differs from the peer's settings on purpose.
        also: Further BEIR folders whose test split shows what is forgotten.
        peer: Whether to run the peer.
    """

    data: str
    model: str
    output: str
    dims: list[int] = field(default_factory=lambda: [384, 128, 64, 32])
    batch_size: int = 64
    learning_rate: float = 1e-4
    max_length: int = 128
    pairs: int | None = None
    ours: str = ""
    also: list[str] = field(default_factory=list)
    peer: bool = True

    def __post_init__(self) -> None:
        require_dims(self.dims)
        require(not Path(self.output).exists(), f"output: {self.output} exists; name a new folder")


def main() -> None:
    config = parse_config(TrainingBenchConfig, __doc__)
    output = Path(config.output)
    output.mkdir(parents=True)
    rows = alone(write_pairs, config)
    results = {"before": alone(evaluate, config, config.model)}
    seconds = {"nestling": train_ours(config)}
    results["nestling"] = alone(evaluate, config, str(output / "nestling" / "final"))
    if config.peer:
        seconds[PEER] = alone(train_theirs, config)
        results[PEER] = alone(evaluate, config, str(output / PEER))
    report(config, rows, results, seconds)


def alone(work: Callable[..., T], *arguments: object) -> T:
    """Run in a fresh process: neither framework finds the other's modules or settings."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def write_pairs(config: TrainingBenchConfig) -> int:
    """One row for each query and positive of the train split."""
    from nestling.records import load_records

    records = load_records(config.data, split="train", progress=False)
    rows = [
        {"query": record.query, "positives": [text]}
        for record in (records[i] for i in range(len(records)))
        for text in record.positives
    ]
    if config.pairs is not None:
        rows = random.Random(0).sample(rows, config.pairs)
    with pairs_file(config).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return len(rows)


def pairs_file(config: TrainingBenchConfig) -> Path:
    return Path(config.output) / "pairs.jsonl"


def train_ours(config: TrainingBenchConfig) -> float:
    """Seconds of the training loop, workers' start included, from the run's own metrics."""
    command, run_folder = [sys.executable, *our_command(config)], Path(config.output) / "nestling"
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return float(sum(line["seconds"] for line in lines if "seconds" in line))


def our_command(config: TrainingBenchConfig) -> list[str]:
    """The recipe with the peer's settings, of which flags in `ours` replace others."""
    run_folder = Path(config.output) / "nestling"
    settings = {
        "model": config.model,
        "output_dir": run_folder,
        "train": pairs_file(config),
        "tuning": "full",
        "matryoshka_dims": ",".join(map(str, config.dims)),
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "query_max_length": config.max_length,
        "document_max_length": config.max_length,
        "dev_share": 0,
        "precision": "fp32",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["train/embed.py", *flags, *config.ours.split()]


def train_theirs(config: TrainingBenchConfig) -> float:
    """Seconds of `trainer.train()`."""
    return train_peer(
        config.model,
        pairs_file(config),
        Path(config.output) / PEER,
        dims=config.dims,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        max_length=config.max_length,
    )


def evaluate(config: TrainingBenchConfig, model: str) -> Scores:
    """nDCG@10 at each dimension, for each data set."""
    from nestling.models.embedder import Embedder
    from nestling.records import load_retrieval_set
    from nestling.retrieval import evaluate_embedder

    embedder = Embedder.from_pretrained(model)
    scores: Scores = {}
    for data in (config.data, *config.also):
        found = evaluate_embedder(
            embedder,
            load_retrieval_set(data, "test"),
            config.dims,
            query_max_length=config.max_length,
            document_max_length=config.max_length,
        )
        scores[Path(data).name] = {dim: metrics["nDCG@10"] for dim, metrics in found.items()}
    return scores


def report(config: TrainingBenchConfig, rows: int, results: dict[str, Scores], seconds: dict[str, float]) -> None:
    """Print tables of quality and time, and write both as JSON."""
    names = list(results)
    quality = [
        [data, dim, *(results[name][data][dim] for name in names)] for data in results["before"] for dim in config.dims
    ]
    print(f"\n{rows:,} pairs, nDCG@10 on test")
    print(table(["data", "dim", *names], quality, digits=4, markdown=True))
    slowest = max(seconds.values())
    print("\n" + table(["", "seconds", "ratio"], [[n, s, s / slowest] for n, s in seconds.items()], markdown=True))
    found = {"pairs": rows, "nDCG@10": results, "seconds": seconds}
    (Path(config.output) / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    run(main)
