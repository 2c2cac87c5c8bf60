"""Small retrieval sets for tests, written as BEIR folders."""

import json
from pathlib import Path

import numpy as np

from nestling.records import RetrievalSet, load_retrieval_set

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
Judged = dict[str, dict[str, int]]


def write_beir(folder: Path, documents: list[str], queries: list[str], qrels: Judged) -> RetrievalSet:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(documents)]
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judged = [f"{query}\t{document}\t{gain}" for query, each in qrels.items() for document, gain in each.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return load_retrieval_set(folder, "test")


def random_set(folder: Path, documents: int, queries: int) -> RetrievalSet:
    rng = np.random.default_rng(documents)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 9))) for _ in range(documents + queries)]
    qrels = {f"q{i}": {f"d{int(rng.integers(documents))}": int(rng.integers(1, 4))} for i in range(queries)}
    return write_beir(folder, texts[:documents], [f"{text}?" for text in texts[documents:]], qrels)
