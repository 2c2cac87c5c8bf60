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


def write_queries_among_documents(folder: Path) -> RetrievalSet:
    """Queries t0 to t5, each followed by another document, are documents too, with a title; q is none.

    t5 is relevant to itself, and the document t2 repeats the text of t3, which is relevant to t2.
    """
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{first} {second} mu" for first, second in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)]
    texts[6] = texts[4]
    names = [f"t{i // 2}" if i % 2 == 0 else f"d{i}" for i in range(len(texts))]
    corpus = [{"_id": name, "title": "On", "text": text} for name, text in zip(names, texts, strict=True)]
    asked = [*({"_id": f"t{i}", "text": texts[2 * i]} for i in range(6)), {"_id": "q", "text": "beta mu"}]
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    relevant = {"t0": "d1", "t1": "d7", "t2": "t3", "t3": "d5", "t4": "d9", "t5": "t5", "q": "t0"}
    judged = [f"{query}\t{document}\t1" for query, document in relevant.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return load_retrieval_set(folder, "test")
