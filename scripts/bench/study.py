"""Train with each of some settings, on each of some sets, with each of some seeds, and compare them on judgements.

python scripts/bench/study.py --model MODEL --sets nl2bash,data/stdlib-search --also cranfield --output runs/study

Settings are flags of train/embed.py under a name, in a YAML file (scripts/bench/study.yaml), where {model} stands for
the model. `base` is the model before training, `sentence-transformers` its
MatryoshkaLoss(MultipleNegativesRankingLoss) on the same rows, for as many steps. NAME@0.7 is the run NAME, moved back:
0.7 of its weights and 0.3 of the base's. A study that was cut off goes on when the same command is given again; the
results of one output have one model, rows, rate and lengths. Settings are chosen on split dev; test is for those that
were chosen. "p" goes by the groups that queries.jsonl names in metadata.group, else by queries; "p, Holm" is p
corrected for the number of settings in the table, base left out. "seconds" are those of the loop, without mining and
what a guide or a teacher takes before it.
"""

import json
import random
import resource
import shlex
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer import PEER, train_peer
from study_conditions import require_same
from study_tables import BASE, mean, print_tables

from nestling.config import parse_config, require, require_dims, require_unique, run
from nestling.files import replace_text, write_jsonl

if TYPE_CHECKING:
    from nestling.models.embedder import Embedder
    from nestling.records import RetrievalSet

ROOT = Path(__file__).parents[2]
# Values of a result: {set: {dimension: nDCG@10 of each query}}.
Scores = dict[str, dict[str, list[float]]]
# Values of the config that all results of an output have in common.
CONDITIONS = ("model", "pairs", "batch_size", "learning_rate", "max_length", "documents", "dims")


@dataclass(frozen=True)
class StudyConfig:
    """Settings of scripts/bench/study.py.

    Args:
        model: Directory of the model to train.
        sets: BEIR folders with a train split and the split to measure, of different names.
        output: A folder for rows, runs and results.
        settings: Names in `settings_file`, or base or sentence-transformers; by default all of the file, and both.
        settings_file: YAML file of the settings.
        baseline: The setting that others are compared with.
        moved_back: Also measure each run with these shares of its weights, the rest being the base's.
        also: Further BEIR folders whose test split shows what is forgotten.
        seeds: Of the rows that are drawn and of the run.
        split: What is measured.
        pairs: Rows of a training.
        batch_size: Queries in a step.
        learning_rate: Peak learning rate, of settings that have none of their own.
        max_length: Tokens of a text, in training and measuring.
        documents: Documents that are searched at the most, those that are relevant among them; 0 for all.
        dims: Dimensions that are trained and measured.
    """

    model: str
    sets: list[str]
    output: str
    settings: list[str] = field(default_factory=list)
    settings_file: str = str(Path(__file__).with_suffix(".yaml"))
    baseline: str = PEER
    moved_back: list[float] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    split: str = "dev"
    pairs: int = 2560
    batch_size: int = 64
    learning_rate: float = 1e-4
    max_length: int = 64
    documents: int = 2500
    dims: list[int] = field(default_factory=lambda: [384, 128, 64, 32])

    def __post_init__(self) -> None:
        require_dims(self.dims)
        require(all(0 < share < 1 for share in self.moved_back), "moved_back: expected shares between 0 and 1")
        require_unique("sets, also", [Path(data).name for data in (*self.sets, *self.also)])


def main() -> None:
    config = parse_config(StudyConfig, __doc__)
    flags = read_settings(config)
    require_splits({each: ["train", config.split] for each in config.sets} | {each: ["test"] for each in config.also})
    for data in config.sets:
        conditions = {"data": str(Path(data).resolve()), **{name: getattr(config, name) for name in CONDITIONS}}
        require_same(set_folder(config, data), conditions, flags)
    for seed in config.seeds:
        for data in config.sets:
            for name in flags:
                measure_setting(config, data, seed, name, flags[name])
            report(config, list(flags))


def require_splits(wanted: dict[str, list[str]]) -> None:
    """Raise ValueError if a folder lacks a split, before anything is trained."""
    from nestling.records.beir import splits_of

    for data, splits in wanted.items():
        missing, found = sorted(set(splits) - set(splits_of(data))), ", ".join(splits_of(data)) or "none"
        require(not missing, f"{data}: expected a BEIR folder with qrels of {', '.join(missing)}; found {found}")


def read_settings(config: StudyConfig) -> dict[str, str]:
    """Flags of each setting, by its name."""
    import yaml

    of_file: dict[str, str] = yaml.safe_load(Path(config.settings_file).read_text(encoding="utf-8"))
    known = {BASE: "", PEER: "", **of_file}
    unknown = set(config.settings) - set(known)
    require(not unknown, f"settings: {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    require(
        config.baseline.partition("@")[0] in known, f"baseline: {config.baseline}; expected one of {', '.join(known)}"
    )
    return {name: (known[name] or "").replace("{model}", config.model) for name in config.settings or known}


def measure_setting(config: StudyConfig, data: str, seed: int, name: str, flags: str) -> None:
    """Train and measure, unless the results are there; the run's folder stays until they are."""
    shares = (1.0, *config.moved_back)
    missing = [share for share in shares if not is_measured(config, data, result_file(config, data, seed, name, share))]
    if name == BASE:
        missing = [share for share in missing if share == 1]
    if not missing:
        return
    model, seconds, before = config.model, 0.0, children_seconds()
    if name != BASE:
        train = train_theirs if name == PEER else train_ours
        folder = set_folder(config, data) / f"{name}.{seed}"
        model, seconds = train(config, data, seed, folder, flags)
    processor = children_seconds() - before
    for share in missing:
        scores, groups = measure(config, data, model, share)
        times = {"seconds": seconds, "processor": processor}
        result = {"setting": name, "share": share, **times, "scores": scores, "groups": groups}
        replace_text(result_file(config, data, seed, name, share), json.dumps(result) + "\n")
        means = {f"{each}/{dim}": f"{mean(of):.4f}" for each, dims in scores.items() for dim, of in dims.items()}
        print(
            f"{Path(data).name} {seed} {label(name, share)}: {seconds:.0f} s, {processor:.0f} s of processor {means}",
            flush=True,
        )


def is_measured(config: StudyConfig, data: str, path: Path) -> bool:
    """Whether a result is there, with all sets that are wanted now."""
    wanted = {Path(each).name for each in (data, *config.also)}
    return path.exists() and wanted <= set(json.loads(path.read_text(encoding="utf-8")).get("groups", {}))


def children_seconds() -> float:
    """Processor time of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train_ours(config: StudyConfig, data: str, seed: int, folder: Path, flags: str) -> tuple[str, float]:
    """The directory of the trained model, and the seconds of the loop from the run's own metrics."""
    mined, training = [each for each in shlex.split(flags) if each.startswith("--mine.")], shlex.split(flags)
    rows = mined_rows(config, data, seed, mined) if mined else train_rows(config, data, seed)
    settings = {
        "model": config.model,
        "output_dir": folder,
        "train": rows,
        "tuning": "full",
        "precision": "fp32",
        "matryoshka_dims": ",".join(map(str, config.dims)),
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "query_max_length": config.max_length,
        "document_max_length": config.max_length,
        "seed": seed,
        "dev_share": 0,
        "chunk_tokens": 512,
        "dataloader_num_workers": 0,
        "resume": "true",
    }
    start("train/embed.py", settings, [each for each in training if each not in mined], folder.with_suffix(".log"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return str(folder / "final"), float(sum(line["seconds"] for line in lines if "seconds" in line))


def train_theirs(config: StudyConfig, data: str, seed: int, folder: Path, flags: str) -> tuple[str, float]:
    rows = train_rows(config, data, seed)
    training = partial(
        train_peer,
        config.model,
        rows,
        folder,
        dims=config.dims,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        max_length=config.max_length,
        seed=seed,
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # it finds none of our settings of torch
        return str(folder), pool.submit(training).result()


def train_rows(config: StudyConfig, data: str, seed: int) -> Path:
    """Pairs of the train split, drawn by the seed; a query with several positives gives as many."""
    path = set_folder(config, data) / f"rows.{seed}.jsonl"
    if not path.exists():
        from nestling.records import load_records

        records = load_records(data, split="train", progress=False)
        pairs = [
            (record.query, text) for record in (records[i] for i in range(len(records))) for text in record.positives
        ]
        drawn = random.Random(seed).sample(pairs, min(config.pairs, len(pairs)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, ({"query": query, "positives": [text]} for query, text in drawn))
    return path


def mined_rows(config: StudyConfig, data: str, seed: int, flags: list[str]) -> Path:
    """These rows with hard negatives from all documents of the set, by BM25 and the base model."""
    rows = train_rows(config, data, seed)
    path = rows.with_name(f"mined.{zlib.crc32(' '.join(flags).encode()):x}.{seed}.jsonl")
    if not path.exists():
        settings = {
            "data": rows,
            "corpus": data,
            "retrievers": f"bm25,{config.model}",
            "scorer": config.model,
            "query_max_length": config.max_length,
            "document_max_length": config.max_length,
            "precision": "fp32",
            "output": path,
        }
        start("scripts/mine.py", settings, [each.replace("--mine.", "--") for each in flags], path.with_suffix(".log"))
    return path


def start(script: str, settings: dict[str, object], more: list[str], log: Path) -> None:
    """Run a script with settings, of which those in `more` replace others; its output goes into a file."""
    given = {each.partition("=")[0] for each in more}
    flags = [f"--{name}={value}" for name, value in settings.items() if f"--{name}" not in given]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run([sys.executable, script, *flags, *more], cwd=ROOT, check=False, stdout=file, stderr=file)
    require(done.returncode == 0, f"{script} ended with status {done.returncode}; {log} has what it said")


def measure(config: StudyConfig, data: str, model: str, share: float) -> tuple[Scores, dict[str, list[str] | None]]:
    """nDCG@10 of each query at each dimension, on the set's split and on test of the others; the queries' groups."""
    embedder = load(config, model, share)
    folders = [(data, config.split), *((each, "test") for each in config.also)]
    sets = {Path(folder).name: thinned(config, folder, split) for folder, split in folders}
    groups = {name: None if each.groups is None else list(each.groups) for name, each in sets.items()}
    return {name: ndcg(config, embedder, each) for name, each in sets.items()}, groups


def load(config: StudyConfig, model: str, share: float) -> "Embedder":
    """A model, moved back towards the base by 1 - share."""
    import torch

    from nestling.models.embedder import Embedder

    embedder = Embedder.from_pretrained(model)
    if share < 1:
        base = dict(Embedder.from_pretrained(config.model).named_parameters())
        with torch.no_grad():
            for name, weight in embedder.named_parameters():
                weight.lerp_(base[name], 1 - share)
    return embedder


def ndcg(config: StudyConfig, embedder: "Embedder", data: "RetrievalSet") -> dict[str, list[float]]:
    from nestling.retrieval import encode_set, relevant_ranks
    from nestling.retrieval.metrics import metrics_per_query

    limit = config.max_length
    encoded = encode_set(embedder, data, query_max_length=limit, document_max_length=limit)
    found = {dim: metrics_per_query(relevant_ranks(encoded, dim))["nDCG@10"] for dim in config.dims}
    return {str(dim): [round(float(each), 6) for each in values] for dim, values in found.items()}


def thinned(config: StudyConfig, folder: str, split: str) -> "RetrievalSet":
    """Some of the documents: those that are relevant and others, drawn, or if too many are relevant, drawn of all."""
    import numpy as np

    from nestling.records import load_retrieval_set

    data = load_retrieval_set(folder, split)
    if not config.documents or len(data.documents) <= config.documents:
        return data
    order = np.random.default_rng(0).permutation(len(data.documents))
    relevant = np.unique(np.concatenate(data.relevant))
    if len(relevant) < config.documents:
        order = np.concatenate([relevant, order[~np.isin(order, relevant)]])
    kept = np.sort(order[: config.documents])
    left = [np.isin(rows, kept) for rows in data.relevant]
    return replace(
        data,
        document_ids=[data.document_ids[row] for row in kept],
        documents=[data.documents[row] for row in kept],
        relevant=[np.searchsorted(kept, rows[there]) for rows, there in zip(data.relevant, left, strict=True)],
        gains=[gains[there] for gains, there in zip(data.gains, left, strict=True)],
        own_documents=np.full(len(data.queries), -1),
    )


def report(config: StudyConfig, names: list[str]) -> None:
    """For each set and dimension the mean over seeds of each setting, and whether it differs from the baseline."""
    for data in config.sets:
        results = read_results(config, data, names)
        if results:
            print_tables(results, [Path(each).name for each in (data, *config.also)], config.dims, config.baseline)


def read_results(config: StudyConfig, data: str, names: list[str]) -> dict[str, list[Any]]:
    """Results of the seeds that are there, by the label of the setting."""
    found: dict[str, list[Any]] = {}
    for name in names:
        for share in (1.0, *config.moved_back):
            files = [result_file(config, data, seed, name, share) for seed in config.seeds]
            there = [json.loads(path.read_text(encoding="utf-8")) for path in files if is_measured(config, data, path)]
            if there:
                found[label(name, share)] = there
    return found


def label(name: str, share: float) -> str:
    return name if share == 1 else f"{name}@{share:g}"


def set_folder(config: StudyConfig, data: str) -> Path:
    return Path(config.output) / Path(data).name


def result_file(config: StudyConfig, data: str, seed: int, name: str, share: float) -> Path:
    path = set_folder(config, data) / f"{label(name, share)}.{seed}.{config.split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    run(main)
