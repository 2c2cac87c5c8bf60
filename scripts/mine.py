"""Write a reranker's scores into training records, so that an embedder or another reranker can learn from them.

    python scripts/mine.py --judge runs/my-reranker/final --data pairs.jsonl --output judged.jsonl
    python train/embed.py --train judged.jsonl --loss.distillation 1.0 ...

Every positive and negative of a row gets the reranker's score for it. Nothing is dropped or moved.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestling.config import parse_config, require, run

if TYPE_CHECKING:
    from nestling.records import Record, RecordTable
    from nestling.reranker import Reranker
    from nestling.scoring import Group, ScoreTally

# Rows whose scores are held at a time.
BLOCK = 1024


@dataclass(frozen=True)
class MineConfig:
    """Settings of scripts/mine.py.

    Args:
        data: Training records: any file, folder or dataset id that the recipes read.
        output: JSONL file for the records with their scores; must not exist.
        judge: Directory or hub id of the reranker.
        split: The split of a BEIR folder or of a dataset id.
        instruction: Task of the queries of rows without one; the reranker's own by default.
        scores: Logits of yes, which a softmax over documents takes (distillation), or its probabilities, from 0 to 1.
        compute: Precision of the model; bf16 is quicker where the hardware has it.
    """

    data: str
    output: str
    judge: str
    split: str = "train"
    instruction: str | None = None
    scores: Literal["logit", "probability"] = "logit"
    compute: Literal["fp32", "bf16"] = "fp32"


def main() -> None:
    config = parse_config(MineConfig, __doc__)
    output = Path(config.output)
    require(not output.exists(), f"--output {output} exists; choose another name or remove it")
    require(output.parent.is_dir(), f"--output {output}: the folder {output.parent} does not exist")

    from nestling.records import load_records

    table = load_records(
        config.data, split=config.split, instruction=config.instruction, allow_no_positives=True, progress=True
    )
    print(table.summary)
    require(not table.graded, f"{config.data}: graded pairs have their scores; expected queries with positives")

    import torch

    from nestling.files import sync
    from nestling.reranker import Reranker
    from nestling.scoring import ScoreTally

    precision = torch.bfloat16 if config.compute == "bf16" else torch.float32
    reranker = Reranker.from_pretrained(config.judge, precision=precision)
    reranker.to("cuda" if torch.cuda.is_available() else "cpu")
    tally = ScoreTally()
    partial = output.with_name(f".{output.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        for record in judge(reranker, table, tally, probabilities=config.scores == "probability"):
            stream.write(json.dumps(to_row(record), ensure_ascii=False) + "\n")
    sync(partial)
    partial.rename(output)
    print(f"{tally}\n{output} holds {len(table):,} rows with {config.scores} scores of {config.judge}")


def judge(
    reranker: "Reranker", table: "RecordTable", tally: "ScoreTally", *, probabilities: bool
) -> "Iterator[Record]":
    """The rows with the reranker's scores, a block at a time."""
    from tqdm import tqdm

    with tqdm(total=len(table), unit="row", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(table), BLOCK):
            records = [table[i] for i in range(start, min(start + BLOCK, len(table)))]
            scores = reranker.logits([to_group(each) for each in records], tally=tally)
            require(
                all(bool(own.isfinite().all()) for own in scores), "the reranker gave NaN or infinity; it has diverged"
            )
            for record, own in zip(records, scores, strict=True):
                values = (own.sigmoid() if probabilities else own).tolist()
                first = len(record.positives)
                yield replace(record, positive_scores=tuple(values[:first]), negative_scores=tuple(values[first:]))
            bar.update(len(records))


def to_group(record: "Record") -> "Group":
    from nestling.scoring import Group

    return Group(record.query, record.positives + record.negatives, record.instruction)


def to_row(record: "Record") -> dict[str, object]:
    """The record in the dialect of data/README.md."""
    return {name: value for name, value in asdict(record).items() if value is not None}


if __name__ == "__main__":
    run(main)
