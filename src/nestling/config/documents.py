"""Settings of scripts/read_documents.py."""

from dataclasses import dataclass

from nestling.config.checks import require, require_at_least


@dataclass(frozen=True)
class ReadDocumentsConfig:
    """Settings of scripts/read_documents.py.

    Args:
        folder: The documents: text, Markdown, HTML, PDF, Word, CSV, JSON lines, source code, and archives of these.
        output: Folder to write corpus.jsonl and dropped.jsonl into; the next time, changed files alone are read.
        model: Directory or hub id of the model whose tokens are counted; by default words are.
        max_tokens: Tokens of a chunk with its title.
        overlap: Tokens that two chunks of one long paragraph or function have in common.
        max_size: Larger documents are not read; in MiB. Memory is a few times this.
        threshold: Chunks that share this much of their shingles (Jaccard) are near duplicates, and of one group.
        shingle: Words in a shingle; 1 ignores the order of words.
    """

    folder: str
    output: str
    model: str | None = None
    max_tokens: int = 256
    overlap: int = 32
    max_size: int = 64
    threshold: float = 0.8
    shingle: int = 2

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"threshold is {self.threshold}, expected above 0 and at most 1")
        require_at_least(1, self, "shingle", "max_size")
        require_at_least(8, self, "max_tokens")
        require_at_least(0, self, "overlap")
        require(
            self.overlap <= self.max_tokens // 4,
            f"overlap is {self.overlap}, expected at most a quarter of max_tokens, {self.max_tokens // 4}",
        )
