"""Train the same model on the same queries with negatives of several kinds, at equal steps, and compare.

python scripts/bench/negatives.py --data DIR --model MODEL --output runs/bench-negatives --seeds 1,2,3

1. in-batch: no hard negatives
2. naive: the documents that BM25 and the model rank highest and nobody called relevant
3. filtered: the same without those that score too high beside the positive (scripts/mine.py)
4. distilled: the filtered ones, with the mean of BM25's and the model's standard scores as the teacher

A run that was cut off goes on when the same command is given again.
"""

import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nestling.config import parse_config, require, run
from nestling.console import table

ROOT = Path(__file__).parents[2]
# Setting: which mined file it trains on.
FILES = {"in-batch": "filtered", "naive": "naive", "filtered": "filtered", "distilled": "filtered"}
MINED = {"naive": ["--max_score_ratio=null"], "filtered": []}


@dataclass(frozen=True)
class NegativesConfig:
    """Settings of scripts/bench/negatives.py.

    Args:
        data: BEIR folder with the splits.
        model: Directory of the model to train.
        output: A folder for mined rows, runs and results.
        seeds: One run of each setting for each.
        settings: Which of in-batch, naive, filtered and distilled.
        miner: Directory of the model to mine with; the one to train by default.
        num_negatives: Hard negatives drawn of a query and step.
        max_length: Tokens of a text.
        mining: Flags of scripts/mine.py for both kinds of hard negatives, one string.
        filter: Flags of scripts/mine.py for the filtered ones, one string.
        training: Flags of train/embed.py for all runs, one string.
        distillation: Flags of train/embed.py for the distilled ones, one string.
        splits: What to evaluate on.
    """

    data: str
    model: str
    output: str
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    settings: list[str] = field(default_factory=lambda: list(FILES))
    miner: str | None = None
    num_negatives: int = 2
    max_length: int = 64
    mining: str = "--depth=100 --num_negatives=4"
    filter: str = "--max_score_ratio=0.95 --sampling=random --among=10"
    training: str = (
        "--batch_size=64 --learning_rate=1e-4 --precision=bf16 --chunk_tokens=512 --dataloader_num_workers=1"
    )
    distillation: str = "--loss.distillation_weight=1"
    splits: list[str] = field(default_factory=lambda: ["test"])

    def __post_init__(self) -> None:
        unknown = set(self.settings) - FILES.keys()
        require(not unknown, f"settings: {', '.join(unknown)}; expected some of {', '.join(FILES)}")
        require(len(self.seeds) == len(set(self.seeds)) > 0, "seeds: give different ones, at least one")


def main() -> None:
    config = parse_config(NegativesConfig, __doc__)
    Path(config.output).mkdir(parents=True, exist_ok=True)
    for kind in dict.fromkeys(FILES[each] for each in config.settings):
        mine(config, kind)
    for seed in config.seeds:
        for setting in config.settings:
            train(config, setting, seed)
    report(config)


def mine(config: NegativesConfig, kind: str) -> None:
    """Rows with hard negatives, and scores of the ensemble for distillation."""
    output = Path(config.output) / f"{kind}.jsonl"
    if output.exists():
        return
    miner = config.miner or config.model
    settings = {
        "data": config.data,
        "retrievers": f"bm25,{miner}",
        "scorer": miner,
        "query_max_length": config.max_length,
        "document_max_length": config.max_length,
        "scores": "ensemble",
        "output": output,
    }
    more = [*shlex.split(config.mining), *MINED[kind]]
    start("scripts/mine.py", settings, [*more, *(shlex.split(config.filter) if kind == "filtered" else [])])


def train(config: NegativesConfig, setting: str, seed: int) -> None:
    """One run, and its results on each split."""
    folder = run_folder(config, setting, seed)
    settings = {
        "model": config.model,
        "output_dir": folder,
        "train": Path(config.output) / f"{FILES[setting]}.jsonl",
        "tuning": "full",
        "query_max_length": config.max_length,
        "document_max_length": config.max_length,
        "num_negatives": 0 if setting == "in-batch" else config.num_negatives,
        "matryoshka_dims": "",
        "seed": seed,
        "dev_share": 0,
        "resume": "true",
    }
    more = shlex.split(config.training) + (shlex.split(config.distillation) if setting == "distilled" else [])
    start("train/embed.py", settings, more)
    for split in config.splits:
        output = result_file(config, setting, seed, split)
        if not output.exists():
            lengths = dict.fromkeys(("query_max_length", "document_max_length"), config.max_length)
            about = {"model": folder / "final", "data": config.data, "split": split, "output": output}
            start("scripts/evaluate.py", {**about, **lengths, "precision": "bf16"}, [])


def start(script: str, settings: dict[str, object], more: list[str]) -> None:
    flags = [f"--{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, script, *flags, *more], cwd=ROOT, check=True)


def run_folder(config: NegativesConfig, setting: str, seed: int) -> Path:
    return Path(config.output) / f"{setting}-{seed}"


def result_file(config: NegativesConfig, setting: str, seed: int, split: str) -> Path:
    return Path(config.output) / f"{setting}-{seed}.{split}.json"


def report(config: NegativesConfig) -> None:
    """Mean and spread of nDCG@10 over the seeds."""
    rows = []
    for setting in config.settings:
        row: list[object] = [setting]
        for split in config.splits:
            scores = [ndcg(result_file(config, setting, seed, split)) for seed in config.seeds]
            row += [statistics.mean(scores), max(scores) - min(scores)]
        rows.append(row)
    heads = [head for split in config.splits for head in (split, "spread")]
    print(f"\nnDCG@10, mean of {len(config.seeds)} seeds and highest less lowest")
    print(table(["negatives", *heads], rows, digits=4, markdown=True))


def ndcg(file: Path) -> float:
    (row,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    return float(row["metrics"]["nDCG@10"])


if __name__ == "__main__":
    run(main)
