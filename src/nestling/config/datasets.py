"""Datasets that training reads and is measured on."""

import math
from dataclasses import dataclass, field

from nestling.config.checks import require


@dataclass(frozen=True)
class TrainData:
    """One training dataset.

    Args:
        path: A JSONL(.gz), Parquet or CSV file, a BEIR folder, or a dataset id.
        split: The split of a BEIR folder or of a dataset id.
        name: What reports call it; by default the file's name without its ending.
        instruction: Task of the queries of this dataset; a row's own instruction goes first.
        weight: How often an epoch visits each row: 0.5 takes half of the rows, 2 takes each twice.
        in_batch_negatives: Whether documents of other rows are negatives; switch off for classification-like data.
        symmetric: Whether both texts of graded pairs are encoded as queries, as similarity tasks are evaluated; switch
            off where the second text is a document.
        columns: Names of the columns that hold query, positive, negatives, ...; by default they are recognised.
    """

    path: str
    split: str = "train"
    name: str | None = None
    instruction: str | None = None
    weight: float = 1.0
    in_batch_negatives: bool = True
    symmetric: bool = True
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, f"train: weight is {self.weight:g}, expected a finite number above 0")


@dataclass(frozen=True)
class DevData:
    """One development set in the BEIR layout.

    Args:
        path: The folder with corpus.jsonl, queries.jsonl and qrels/, or a JSON file with all of these.
        split: Which qrels file to use.
        name: What reports call it; by default the folder's name.
        instruction: Task of its queries; by default the run's instruction.
    """

    path: str
    split: str = "dev"
    name: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class CandidateData(DevData):
    """One development set in the BEIR layout, and the documents that are scored for each of its queries.

    Args:
        path: The folder with corpus.jsonl, queries.jsonl and qrels/, or a JSON file with all of these.
        split: Which qrels file to use.
        name: What reports call it; by default the folder's name.
        instruction: Task of its queries; by default the run's instruction.
        candidates: Where each query's documents come from: bm25, a TREC run file, or a .jsonl file of lists.
        depth: How many documents of bm25 or of a run are scored; those of a .jsonl file's lists are scored all.
    """

    candidates: str = "bm25"
    depth: int = 100

    def __post_init__(self) -> None:
        require(self.depth >= 1, f"dev: depth is {self.depth}, expected at least 1")
        require(
            self.depth == CandidateData.depth or not self.candidates.endswith(".jsonl"),
            f"dev: depth is {self.depth}, and the lists of {self.candidates} are scored whole; leave depth out, or "
            "shorten the lists",
        )
