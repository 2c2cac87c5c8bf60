"""Settings of scripts/make_queries.py."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nestling.config.checks import require, require_address

QUESTION_TYPES = {
    "keywords": "a few search terms without a sentence around them",
    "question": "a question about a fact, a reason or a way to do something",
    "comparative": "a question of how two or more things differ, or which of them is better for a purpose",
    "yes_no": "a question whose answer is yes or no",
    "claim": "a statement for which the searcher wants evidence",
    "overview": "a request for what there is to know about a subject in general",
    "situation": "the searcher's own situation or problem, told so that the passage helps",
}
DIFFICULTIES = {
    "layman": "everyday words; nothing about the subject is taken for granted",
    "student": "the subject's common terms, as after an introduction to it",
    "expert": "the exact terms and details that people use who work on it",
}
LENGTHS = {"2-6": 0.4, "7-14": 0.4, "15-40": 0.2}
MAX_SIMILARITY = 0.95
LENGTH = re.compile(r"(\d+)-(\d+)")
# Settings that no answer in a journal depends on, so that they may change while answers are kept. These are kept by the
# texts of documents, which may come and go.
FREE = (
    *("data", "output", "sample", "explain", "dry_run", "instruction", "trust_remote_code", "batch_size", "budget"),
    *("limit", "min_characters", "multi_hop", "max_similarity", "min_grade", "attempts", "endpoint.url"),
    *("endpoint.api_key_env", "endpoint.concurrency", "endpoint.requests_per_minute", "endpoint.timeout"),
    *("endpoint.retries", "endpoint.price_in", "endpoint.price_out"),
)


@dataclass(frozen=True)
class EndpointConfig:
    """A server with OpenAI's API: vLLM, llama.cpp, SGLang, or a hosted one.

    Args:
        url: Base URL, such as http://localhost:8000/v1; without one the model is a directory and runs here.
        api_key_env: Environment variable that holds the server's key; by default none is sent.
        concurrency: Requests at a time.
        requests_per_minute: Highest number of requests a minute; by default as many as the server answers.
        timeout: Seconds after which a request without a whole answer has failed.
        retries: How often a request that failed is sent again.
        body: More fields of each request's body, or others in place of ours; null leaves one out.
        price_in: Price of a million tokens of prompts.
        price_out: Price of a million tokens of answers.
    """

    url: str | None = None
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 120
    retries: int = 5
    body: dict[str, Any] = field(default_factory=dict)
    price_in: float = 0
    price_out: float = 0

    def __post_init__(self) -> None:
        require(self.concurrency >= 1, f"endpoint.concurrency is {self.concurrency}, expected at least 1")
        require(self.retries >= 0, f"endpoint.retries is {self.retries}, expected at least 0")
        if self.url is not None:
            require_address("endpoint.url", self.url)
        for name in ("requests_per_minute", "timeout"):
            value = getattr(self, name)
            require(
                value is None or (math.isfinite(value) and value > 0),
                f"endpoint.{name} is {value}, expected a finite number above 0",
            )
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"endpoint.{name} is {value}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class MakeQueriesConfig:
    """Have a language model write queries for documents.

    Args:
        data: The documents: a BEIR folder or a corpus.jsonl.
        model: Name of the model at the endpoint, or directory of a causal language model with a chat template.
        output: JSONL file for the pairs; must not exist; the journal of answers is kept beside it.
        endpoint: The server that runs the model.
        personas: File with one searcher a line; by default data/personas.txt.
        num_queries: Queries of a document; the question_types are shared out among them.
        num_personas: Personas of a document that the model chooses from.
        embedder: Directory or hub id of an embedder that picks the nearest personas, which are drawn by default, and
            finds queries that mean the same, and passages for multi_hop.
        trust_remote_code: Run the code that comes with the model.
        question_types: Types of question that the model chooses from, each with its meaning.
        difficulties: Difficulties that the model chooses from, each with its meaning.
        multi_hop: Shares of the documents that get a query of several passages as their last, by how many, 2 or 3: the
            chunks that follow the document's in its file, or else those nearest to it by the embedder.
        lengths: Ranges of words of a query, such as 2-6, each with a weight; one is drawn for a document.
        languages: Languages of queries, each with a weight; document stands for the document's own language.
        instruction: Task to write into each row.
        limit: Number of documents, drawn at random; by default all; may change between runs with one journal.
        min_characters: Skip shorter documents.
        max_characters: Show the model only this many characters of a longer document.
        min_grade: Keep a query only if the model, asked once more, gives it at least this grade, from 1 to 5, for being
            answerable by the passage alone, specific, and natural; by default none is judged.
        max_similarity: Drop a query whose cosine with a better graded one, by the embedder, is at least this; by
            default 0.95 with an embedder.
        sample: HTML file to write a sample of 50 queries to, with passages and grades, before the rest is asked for.
        temperature: Temperature of sampling; 0 takes the likeliest tokens.
        max_tokens: Longest answer in tokens.
        attempts: How often to ask for a document's answer until one can be used.
        batch_size: Prompts at a time of a model that runs here, without an endpoint.
        seed: Seed of all draws, and, with the document, of the model's sampling.
        budget: Start no new document once this much has been spent, by the endpoint's prices.
        explain: Also write each row's document id and what the query was asked to be.
        dry_run: Print the prompts of a few documents and an estimate of the tokens; ask and write nothing.
    """

    data: str
    model: str
    output: str | None = None
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    personas: str | None = None
    num_queries: int = 1
    num_personas: int = 5
    embedder: str | None = None
    question_types: dict[str, str] = field(default_factory=QUESTION_TYPES.copy)
    multi_hop: dict[int, float] = field(default_factory=dict)
    difficulties: dict[str, str] = field(default_factory=DIFFICULTIES.copy)
    lengths: dict[str, float] = field(default_factory=LENGTHS.copy)
    languages: dict[str, float] = field(default_factory=lambda: {"document": 1.0})
    instruction: str | None = None
    limit: int | None = None
    min_characters: int = 50
    max_characters: int = 6000
    min_grade: int | None = None
    max_similarity: float | None = None
    sample: str | None = None
    temperature: float = 0.7
    max_tokens: int = 300
    attempts: int = 3
    batch_size: int = 16
    seed: int = 42
    budget: float | None = None
    explain: bool = False
    dry_run: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in (
            "num_queries",
            "num_personas",
            "min_characters",
            "max_characters",
            "max_tokens",
            "attempts",
            "batch_size",
        ):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(self.min_grade in (None, 1, 2, 3, 4, 5), f"min_grade is {self.min_grade}, expected 1 to 5")
        if self.max_similarity is not None:
            require(
                0 < self.max_similarity <= 1,
                f"max_similarity is {self.max_similarity}, expected a cosine above 0, at most 1",
            )
            require(self.embedder is not None, "max_similarity needs an --embedder, whose cosines it limits")
        require(
            self.sample is None or self.sample.endswith(".html"),
            f"sample is {self.sample}, expected a name that ends in .html",
        )
        require(self.limit is None or self.limit >= 1, f"limit is {self.limit}, expected at least 1")
        require(self.seed >= 0, f"seed is {self.seed}, expected 0 or more")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature is {self.temperature}, expected 0 or more",
        )
        require(self.dry_run or self.output is not None, "give an --output, or --dry_run true, which writes none")
        require(
            self.output is None or self.output.endswith(".jsonl"),
            f"output is {self.output}, expected a name that ends in .jsonl",
        )
        self._check_choices()
        prices = self.endpoint.price_in + self.endpoint.price_out
        require(
            self.budget is None or (self.budget > 0 and prices > 0),
            "budget needs to be above 0, and endpoint.price_in and endpoint.price_out to count it by",
        )

    def _check_choices(self) -> None:
        require(bool(self.question_types), "question_types is empty; expected at least one, with what it means")
        require(bool(self.difficulties), "difficulties is empty; expected at least one, with what it means")
        for number, share in self.multi_hop.items():
            require(number in (2, 3), f"multi_hop: {number} passages; expected 2 or 3, each with a share")
            require(0 < share <= 1, f"multi_hop: the share of {number} is {share}, expected above 0, at most 1")
        total = sum(self.multi_hop.values())
        require(total <= 1, f"multi_hop: the shares add up to {total:g}, expected at most 1, which is every document")
        check_weights("lengths", self.lengths)
        check_weights("languages", self.languages)
        for length in self.lengths:
            words = LENGTH.fullmatch(length)
            require(
                words is not None and 1 <= int(words[1]) <= int(words[2]),
                f"lengths: {length} is no range of words; expected for instance 2-6",
            )


def check_weights(name: str, weights: Mapping[str, float]) -> None:
    """Raise ValueError unless there are weights, all finite and above 0."""
    require(bool(weights), f"{name} is empty; expected at least one, with its weight")
    for each, weight in weights.items():
        require(math.isfinite(weight) and weight > 0, f"{name}: the weight of {each} is {weight}, expected above 0")
