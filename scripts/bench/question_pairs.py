"""Questions with intents as retrieval of questions by questions: relevant is what has the same intent.

python scripts/bench/question_pairs.py --data banking77 --output question-pairs

Writes three folders in the BEIR layout. In pairs/ each question of the split has one question of the train split as
its positive, as mined data has it; in judged/ it has all of its intent, which says what is false. In retrieval/
questions of train are trained on, each with another of its intent, and those of dev and test are judged.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nestling.config import parse_config, require, require_new, run


@dataclass(frozen=True)
class QuestionPairsConfig:
    """Settings of scripts/bench/question_pairs.py.

    Args:
        data: BEIR folder whose queries have one relevant document each, the intent.
        output: A folder; must not exist.
        split: Whose questions ask; those of train answer.
        seed: Of the draw of positives.
    """

    data: str
    output: str
    split: str = "dev"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.split != "train", "split: questions of train answer; name another")


def main() -> None:
    config = parse_config(QuestionPairsConfig, __doc__)
    require_new("--output", config.output)

    query_set, answering = questions(config.data, config.split), questions(config.data, "train")
    of_intent: dict[str, list[int]] = defaultdict(list)
    for i, (_, intent) in enumerate(answering):
        of_intent[intent].append(i)
    source = random.Random(config.seed)
    judged = [of_intent[intent] for _, intent in query_set]
    write_split(Path(config.output) / "judged", query_set, answering, judged)
    write_split(Path(config.output) / "pairs", query_set, answering, [[source.choice(each)] for each in judged])
    write_retrieval(Path(config.output) / "retrieval", config, answering, of_intent)
    print(f"{config.output}: {len(query_set):,} questions, {len(answering):,} to find, {len(of_intent)} intents")


def questions(data: str, split: str) -> list[tuple[str, str]]:
    """Each question with its intent."""
    from nestling.records import load_records

    records = load_records(data, split=split, progress=False)
    return [(record.query, record.positives[0]) for record in (records[i] for i in range(len(records)))]


Question = tuple[str, str]


def write_retrieval(
    folder: Path, config: QuestionPairsConfig, answering: list[Question], of_intent: dict[str, list[int]]
) -> None:
    """Write a folder with the splits train, dev and test."""
    source, splits = random.Random(config.seed), {}
    for split in ("dev", "test"):
        asking = questions(config.data, split)
        splits[split] = (asking, [of_intent[intent] for _, intent in asking])
    others = [[row for row in of_intent[intent] if row != i] for i, (_, intent) in enumerate(answering)]
    splits["train"] = (answering, [[source.choice(rows)] for rows in others])
    write(folder, answering, splits)


def write_split(folder: Path, asking: list[Question], answering: list[Question], relevant: list[list[int]]) -> None:
    """Write a folder whose split is named train, since it is mined for."""
    write(folder, answering, {"train": (asking, relevant)})


def write(folder: Path, answering: list[Question], splits: dict[str, tuple[list[Question], list[list[int]]]]) -> None:
    """Write a folder in the BEIR layout: questions to find, and of each split those that ask and what is relevant."""
    from nestling.files import replace_text, write_jsonl

    (folder / "qrels").mkdir(parents=True)
    found = ({"_id": f"d{i}", "title": "", "text": text} for i, (text, _) in enumerate(answering))
    write_jsonl(folder / "corpus.jsonl", found)
    asked = ((f"{split}{i}", text) for split, (asking, _) in splits.items() for i, (text, _) in enumerate(asking))
    write_jsonl(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in asked))
    for split, (_, relevant) in splits.items():
        lines = [f"{split}{i}\td{row}\t1\n" for i, rows in enumerate(relevant) for row in rows]
        replace_text(folder / "qrels" / f"{split}.tsv", "".join(["query-id\tcorpus-id\tscore\n", *lines]))


if __name__ == "__main__":
    run(main)
