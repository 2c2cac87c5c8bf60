"""Questions on articles as retrieval of sentences: relevant is the sentence in which an answer begins.

python scripts/bench/answer_sentences.py --data xquad.en.json --output runs/xquad

Reads a file in SQuAD's layout, such as XQuAD or COVID-QA, and writes a folder in the BEIR layout. All sentences of all
articles can be found; the articles are divided into train, dev and test, and a query's group is its article. Questions
of one or two words are left out.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.config import parse_config, require, require_new, run

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[])|\n+")
SHORTEST = 20  # characters of a sentence; a shorter one, such as "Fig. ", goes on


@dataclass(frozen=True)
class AnswerSentencesConfig:
    """Settings of scripts/bench/answer_sentences.py.

    Args:
        data: A JSON file in SQuAD's layout.
        output: A folder; must not exist.
        train: Share of the articles to train on.
        dev: Share of the articles of dev; the rest is test.
        seed: Of the order in which articles are divided.
    """

    data: str
    output: str
    train: float = 0.7
    dev: float = 0.15
    seed: int = 5

    def __post_init__(self) -> None:
        shares = f"train {self.train:g}, dev {self.dev:g}"
        require(min(self.train, self.dev, 1 - self.train - self.dev) > 0, f"{shares}: expected shares that leave some")


def main() -> None:
    config = parse_config(AnswerSentencesConfig, __doc__)
    require_new("--output", config.output)
    articles = json.loads(Path(config.data).read_text(encoding="utf-8"))["data"]
    splits = divide(len(articles), config)
    documents: dict[str, str] = {}  # id of each sentence
    queries: list[dict[str, Any]] = []
    judged: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number, (article, split) in enumerate(zip(articles, splits, strict=True)):
        for question, relevant in questions(article, documents):
            name = f"q{len(queries)}"
            queries.append({"_id": name, "text": question, "metadata": {"group": f"a{number}"}})
            judged[split] += [f"{name}\t{document}\t1\n" for document in relevant]
    write(Path(config.output), documents, queries, judged)
    counts = ", ".join(f"{len({line.split()[0] for line in lines}):,} {split}" for split, lines in judged.items())
    print(f"{config.output}: {counts} questions of {len(articles):,} articles, {len(documents):,} sentences to find")


def divide(articles: int, config: AnswerSentencesConfig) -> list[str]:
    """The split of each article."""
    order = list(range(articles))
    random.Random(config.seed).shuffle(order)
    splits = [""] * articles
    for place, article in enumerate(order):
        share = place / articles
        splits[article] = "train" if share < config.train else "dev" if share < config.train + config.dev else "test"
    return splits


def questions(article: dict[str, Any], documents: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Each question with the ids of its sentences; new sentences are added to the documents."""
    for paragraph in article["paragraphs"]:
        text = paragraph["context"]
        spans = sentences(text)
        ids = [documents.setdefault(" ".join(text[a:b].split()), f"d{len(documents)}") for a, b in spans]
        for asked in paragraph["qas"]:
            starts = [answer["answer_start"] for answer in asked["answers"]]
            found = {name for name, (a, b) in zip(ids, spans, strict=True) if any(a <= start < b for start in starts)}
            if found and len(asked["question"].split()) > 2:
                yield " ".join(asked["question"].split()), sorted(found)


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end."""
    spans, start = [], 0
    for end in SENTENCE_END.finditer(text):
        if end.start() - start > SHORTEST:
            spans.append((start, end.start()))
            start = end.end()
    spans.append((start, len(text)))
    return [(a, b) for a, b in spans if b - a > SHORTEST // 2]


def write(folder: Path, documents: dict[str, str], queries: list[dict[str, Any]], judged: dict[str, list[str]]) -> None:
    from nestling.files import replace_text, write_jsonl

    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for text, name in documents.items()))
    write_jsonl(folder / "queries.jsonl", queries)
    for split, lines in judged.items():
        replace_text(folder / "qrels" / f"{split}.tsv", "".join(["query-id\tcorpus-id\tscore\n", *lines]))


if __name__ == "__main__":
    run(main)
