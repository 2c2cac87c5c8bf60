"""Settings of scripts/split.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_at_least


@dataclass(frozen=True)
class SplitConfig:
    """Settings of scripts/split.py.

    Args:
        data: Training records: any file, folder or dataset id that the recipes read.
        output: Folder to write train.jsonl, corpus.jsonl, queries.jsonl and qrels/ into; must not exist.
        split: The split of a BEIR folder or of a dataset id.
        columns: Columns of the data, such as query=title,positive=body,negatives=others; by default recognised.
        dev_share: Share of the groups to choose checkpoints by; 0: none.
        test_share: Share of the groups to measure with; 0: none.
        group_by: What rows of one group share: queries and documents, or queries alone, for classification-like data.
        threshold: Texts that share this much of their shingles (Jaccard) are near duplicates, and of one group.
        shingle: Words in a shingle; 1 ignores the order of words.
        seed: Another seed gives other splits.
    """

    data: str
    output: str
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    dev_share: float = 0.1
    test_share: float = 0.1
    group_by: Literal["documents", "queries"] = "documents"
    threshold: float = 0.8
    shingle: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"threshold is {self.threshold}, expected above 0 and at most 1")
        require_at_least(1, self, "shingle")
        require_at_least(0, self, "dev_share", "test_share", "seed")
        require(
            0 < self.dev_share + self.test_share < 1,
            f"dev_share and test_share are {self.dev_share:g} and {self.test_share:g}; expected together above 0 and "
            "below 1, the rest is for training",
        )
