"""Mining against sentence-transformers' `mine_hard_negatives`: the same model, texts and rules, from start to end.

python scripts/bench/mine.py --model MODEL_DIR --data BEIR_DIR
python scripts/bench/mine.py --model MODEL_DIR --data BEIR_DIR --documents 100000 --repeats 3

Each side is a process of its own that starts with nothing in its cache, and they take turns; times are medians, memory
is the highest resident memory of any run (Linux). Both drop known positives and what scores 95 % of the positive or
more, and take the 7 negatives that score highest among 100. Documents beyond those of the data are theirs with a number
behind. A third figure is the search alone over the time of the bare matrix products, in this process.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import parse_config, require, run
from nestling.console import table

if TYPE_CHECKING:
    from nestling.mining.vectors import Vectors

ROOT = Path(__file__).parents[2]
NEGATIVES, DEPTH, MAX_SCORE_RATIO = 7, 100, 0.95


@dataclass(frozen=True)
class MineBenchConfig:
    """Settings of scripts/bench/mine.py.

    Args:
        model: Directory of an embedder.
        data: Folder in the BEIR layout.
        split: Which queries.
        queries: At most so many.
        documents: So many documents, made up where the data has fewer; as many as it has by default.
        max_length: Tokens of a text.
        batch_size: Texts that sentence-transformers encodes at once.
        repeats: Runs of each side.
        side: For the processes that this script starts.
        folder: Where these find their data.
    """

    model: str
    data: str = ""
    split: str = "train"
    queries: int = 20_000
    documents: int | None = None
    max_length: int = 64
    batch_size: int = 32
    repeats: int = 1
    side: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.data) or self.side is not None, "give --data, a folder in the BEIR layout")
        require(min(self.queries, self.max_length, self.batch_size, self.repeats) > 0, "a number has to be above 0")


@dataclass(frozen=True)
class Run:
    """What one run of a side took.

    Args:
        seconds: From the start of its process to its end.
        mebibytes: Its highest resident memory.
    """

    seconds: float
    mebibytes: float


def main() -> None:
    config = parse_config(MineBenchConfig, __doc__)
    if config.side is not None:
        mine_with_sentence_transformers(config)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        queries, documents = write_data(config, folder)
        print(
            f"{queries:,} pairs, {documents:,} documents, {os.cpu_count()} cores, {config.repeats} runs each",
            flush=True,
        )
        runs: dict[str, list[Run]] = {"sentence-transformers": [], "nestling": []}
        for number in range(config.repeats):
            for side, done in runs.items():
                done.append(run_side(config, side, folder, number))
        report(runs)
    search, product = search_times(min(queries, 4096), documents, config.repeats)
    print(f"search alone: {search:.2f} s, the bare products {product:.2f} s, ratio {search / product:.2f}")


def write_data(config: MineBenchConfig, folder: Path) -> tuple[int, int]:
    """Pairs and a corpus as both sides read them; how many there are of each."""
    import json

    from nestling.records import load_retrieval_set

    data = load_retrieval_set(config.data, config.split)
    texts = list(dict.fromkeys(data.documents))
    wanted = len(texts) if config.documents is None else config.documents
    require(wanted >= len(texts), f"documents is {wanted}, and the data has {len(texts)}")
    more = (f"{text} {number}" for number in range(wanted) for text in texts)
    corpus = [text for text, _ in zip(chain(texts, more), range(wanted), strict=False)]
    pairs = [
        {"query": query, "positives": [data.documents[int(rows[0])]]}
        for query, rows in zip(data.queries, data.relevant, strict=True)
        if len(rows)
    ][: config.queries]
    for name, rows in (("pairs", pairs), ("corpus", [{"_id": str(i), "text": text} for i, text in enumerate(corpus)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(pairs), len(corpus)


def run_side(config: MineBenchConfig, side: str, folder: Path, number: int) -> Run:
    """Run a side's process to its end."""
    length = str(config.max_length)
    if side == "nestling":
        command = [str(ROOT / "scripts" / "mine.py"), "--data", str(folder / "pairs.jsonl")]
        command += ["--corpus", str(folder / "corpus.jsonl"), "--retrievers", config.model, "--depth", str(DEPTH)]
        command += [
            "--num_negatives",
            str(NEGATIVES),
            "--max_score_ratio",
            str(MAX_SCORE_RATIO),
            "--query_max_length",
            length,
        ]
        command += ["--document_max_length", length, "--output", str(folder / f"mined-{number}.jsonl")]
    else:
        command = [__file__, "--side", side, "--model", config.model, "--folder", str(folder)]
        command += ["--max_length", length, "--batch_size", str(config.batch_size)]
    environment = {**os.environ, "NESTLING_CACHE": str(folder / f"cache-{number}")}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    require(status == 0, f"{side} failed:\n{output}")
    return Run(time.perf_counter() - started, usage.ru_maxrss / 1024)


def mine_with_sentence_transformers(config: MineBenchConfig) -> None:
    """Their side, in a process of its own."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from nestling.records.json_files import read_jsonl

    folder = Path(config.folder or "")
    pairs = [row for _, row in read_jsonl(folder / "pairs.jsonl")]
    columns = {"query": [row["query"] for row in pairs], "positive": [row["positives"][0] for row in pairs]}
    model = SentenceTransformer(config.model)
    model.max_seq_length = config.max_length
    mined = mine_hard_negatives(
        Dataset.from_dict(columns),
        model,
        corpus=[row["text"] for _, row in read_jsonl(folder / "corpus.jsonl")],
        range_max=DEPTH,
        relative_margin=1 - MAX_SCORE_RATIO,
        num_negatives=NEGATIVES,
        sampling_strategy="top",
        output_format="n-tuple",
        output_scores=True,
        batch_size=config.batch_size,
        verbose=False,
    )
    mined.to_json(folder / "theirs.jsonl")


def report(runs: dict[str, list[Run]]) -> None:
    theirs = runs["sentence-transformers"]
    seconds = {side: statistics.median(each.seconds for each in done) for side, done in runs.items()}
    peaks = {side: max(each.mebibytes for each in done) for side, done in runs.items()}
    rows: list[list[object]] = [
        [
            side,
            seconds[side],
            seconds[side] / seconds["sentence-transformers"],
            peaks[side],
            peaks[side] / max(each.mebibytes for each in theirs),
        ]
        for side in runs
    ]
    print(table(["side", "seconds", "of theirs", "MiB", "of theirs"], rows, digits=2, markdown=True))


def search_times(queries: int, documents: int, repeats: int) -> tuple[float, float]:
    """Median seconds of the exact search, and of the products that it cannot do without."""
    import numpy as np
    import torch

    from nestling.mining.cached_encoder import TEXTS_PER_SHARD
    from nestling.mining.nearest import QUERY_BLOCK, nearest
    from nestling.mining.vectors import Vectors

    device = torch.device("cpu")
    rng = np.random.default_rng(0)

    def vectors(count: int) -> "Vectors":
        values = rng.standard_normal((count, 384), dtype=np.float32)
        halves = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
        return Vectors(
            [halves[start : start + TEXTS_PER_SHARD] for start in range(0, count, TEXTS_PER_SHARD)], TEXTS_PER_SHARD
        )

    query_set, pool = vectors(queries), vectors(documents)
    blocks = [
        query_set.span(first, min(first + QUERY_BLOCK, queries), device) for first in range(0, queries, QUERY_BLOCK)
    ]
    shards = [
        pool.span(first, min(first + TEXTS_PER_SHARD, documents), device).T
        for first in range(0, documents, TEXTS_PER_SHARD)
    ]

    def products() -> Iterator[Any]:
        for block in blocks:
            for shard in shards:
                yield block @ shard

    def search() -> Iterator[Any]:
        yield nearest(query_set, pool, documents, DEPTH, device)

    turns = [(timed(search), timed(products)) for _ in range(max(repeats, 3))]
    return statistics.median(one for one, _ in turns), statistics.median(other for _, other in turns)


def timed(work: Callable[[], Iterator[Any]]) -> float:
    started = time.perf_counter()
    for _ in work():
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
