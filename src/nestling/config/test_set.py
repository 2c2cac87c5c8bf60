"""Settings of scripts/make_test_set.py."""

import math
from dataclasses import dataclass, field

from nestling.config.checks import require, require_at_least
from nestling.config.queries import EndpointConfig


@dataclass(frozen=True, kw_only=True)
class MakeTestSetConfig:
    """Settings of scripts/make_test_set.py.

    Args:
        data: BEIR folder whose queries are judged; its own judgements are taken along in the pools.
        split: Which of its queries.
        model: Name of the model at the endpoint, or directory of a causal language model with a chat template.
        output: Folder for the test set; must not exist.
        journal: File of the model's answers, none of which is asked for twice; by default OUTPUT.journal.jsonl.
        endpoint: The server that runs the model.
        retrievers: What finds the documents to judge: bm25, TREC run files, directories or hub ids of embedders.
        depth: Documents of a query that each of them gives.
        relevant_from: Lowest grade that counts as relevant; what is above it counts more.
        second_share: Share of the documents that are judged twice, to see how far the model agrees with itself.
        corrections: File that the page of judgements saved; its grades replace the model's.
        page_queries: Queries on that page, drawn at random.
        max_characters: Show the model only this many characters of a longer document.
        temperature: Temperature of sampling; at 0 a second judgement may be the first one again.
        max_tokens: Longest answer in tokens.
        attempts: How often to ask until an answer can be used.
        batch_size: Prompts at a time of a model that runs here, without an endpoint.
        seed: Seed of all draws and of the model's sampling.
        trust_remote_code: Run the code that comes with the retrievers.
        dry_run: Print a prompt, the number of requests and an estimate of their tokens; ask and write nothing.
    """

    data: str
    split: str = "test"
    model: str
    output: str | None = None
    journal: str | None = None
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    retrievers: list[str] = field(default_factory=lambda: ["bm25"])
    depth: int = 10
    relevant_from: int = 2
    second_share: float = 0.1
    corrections: str | None = None
    page_queries: int = 50
    max_characters: int = 6000
    temperature: float = 0.3
    max_tokens: int = 200
    attempts: int = 3
    batch_size: int = 16
    seed: int = 42
    trust_remote_code: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(bool(self.retrievers), "retrievers is empty; expected bm25, run files or models, with commas between")
        require(len(set(self.retrievers)) == len(self.retrievers), "retrievers: one is given twice")
        require_at_least(1, self, "depth", "page_queries", "max_characters", "max_tokens", "attempts", "batch_size")
        require_at_least(0, self, "seed")
        require(self.relevant_from in (1, 2, 3), f"relevant_from is {self.relevant_from}, expected 1, 2 or 3")
        require(0 <= self.second_share <= 1, f"second_share is {self.second_share:g}, expected 0 to 1")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature is {self.temperature}, expected 0 or more",
        )
        require(self.dry_run or self.output is not None, "give an --output, or --dry_run true, which writes none")
