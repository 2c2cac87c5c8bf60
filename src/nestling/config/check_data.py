"""Settings of scripts/check_data.py."""

from dataclasses import dataclass, field

from nestling.config.checks import require
from nestling.config.cleaning_rules import DEFAULT_RULES, Rule


@dataclass(frozen=True)
class CheckConfig:
    """Settings of scripts/check_data.py.

    Args:
        data: Training records: any file, folder or dataset id that the recipes read.
        split: The split of a BEIR folder or of a dataset id.
        columns: Columns of the data, such as query=title,positive=body,negatives=others; by default recognised.
        eval: Evaluation sets in the BEIR layout, whose queries and relevant documents are looked for in the data.
        eval_split: Which qrels file of the evaluation sets to use; by default every one but that of data's split.
        threshold: Texts that share this much of their shingles (Jaccard) are near duplicates.
        shingle: Words in a shingle; 1 ignores the order of words.
        min_characters: Texts with fewer characters are short.
        model: Directory or hub id of an embedding model, whose tokenizer counts tokens.
        trust_remote_code: Run the code that comes with the model.
        query_max_length: A limit of tokens to try on queries, besides 64, 128, 256, ...
        document_max_length: A limit of tokens to try on documents, likewise.
        sample: Queries, and documents, drawn at random to count languages and tokens.
        examples: Examples to show of each finding.
        output: JSONL file for a cleaned copy; must not exist.
        drop: Rules by which the copy leaves rows and documents out.
        report: File for all figures: .json, or .html for a page; must not exist.
    """

    data: str
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    eval: list[str] = field(default_factory=list)
    eval_split: str | None = None
    threshold: float = 0.8
    shingle: int = 2
    min_characters: int = 3
    model: str | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    sample: int = 100_000
    examples: int = 5
    output: str | None = None
    drop: list[Rule] = field(default_factory=lambda: list(DEFAULT_RULES))
    report: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"threshold is {self.threshold}, expected above 0 and at most 1")
        for name in ("shingle", "sample", "query_max_length", "document_max_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected at least 1")
        for name in ("min_characters", "examples"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected at least 0")
        require(len(set(self.eval)) == len(self.eval), "eval: a folder is given twice")
        limited = self.query_max_length is not None or self.document_max_length is not None
        require(self.model is not None or not limited, "query_max_length and document_max_length need a --model")
