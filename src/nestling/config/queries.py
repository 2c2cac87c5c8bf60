"""Settings of scripts/make_queries.py."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nestling.config.checks import require

QUESTION_TYPES = {
    "keywords": "a few search terms without a sentence around them",
    "question": "a question about a fact, a reason or a way to do something",
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
LENGTH = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class EndpointConfig:
    """A server with OpenAI's API: vLLM, llama.cpp, SGLang, or a hosted one.

    Args:
        url: Its base URL, such as http://localhost:8000/v1; without one the model is a directory and runs here.
        key_variable: Environment variable that holds the key; by default none is sent.
        concurrency: Requests at a time.
        requests_per_minute: No more than these, evenly spaced; by default as many as the server answers.
        timeout: Seconds that the server may be silent.
        retries: How often a request is sent again after silence, a lost connection, a response that is no chat
            completion, or status 408, 409, 429 or 5xx.
        body: Fields of every request's body, beside or in place of ours; null leaves one out.
        price_in: Of a million tokens of prompts.
        price_out: Of a million tokens of answers.
    """

    url: str | None = None
    key_variable: str | None = None
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
        require(
            self.url is None or self.url.startswith(("http://", "https://")),
            f"endpoint.url is {self.url}, expected http://… or https://…, with the /v1 that most servers have",
        )
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
        model: What the endpoint calls the model; or the directory of a causal language model with a chat template.
        output: JSONL file for the pairs; must not exist. The journal of answers is kept beside it.
        endpoint: The server that runs the model.
        personas: File with a searcher a line; data/personas.txt by default.
        candidates: How many of them the model chooses from for a document.
        embedder: Directory or hub id of an embedder: candidates are those nearest to the document; by default they are
            drawn.
        question_types: What the model chooses from, each with what it means.
        difficulties: Likewise.
        lengths: Words of a query, such as 2-6, each with a weight; one is drawn for a document.
        languages: Languages of queries, each with a weight, likewise; document is the document's own.
        instruction: Task that is written into each row.
        limit: So many documents, drawn; by default all. It may change between runs that share a journal.
        min_characters: Shorter documents are skipped.
        max_characters: Of a longer document the model sees so many.
        temperature: Of sampling; 0 takes the likeliest tokens.
        max_tokens: Tokens of an answer.
        attempts: How often an answer is asked for until it can be used.
        batch_size: Prompts that a model without an endpoint answers at a time.
        seed: Of all draws, and with the document of the model's sampling.
        budget: No new document is begun when this has been spent, by the endpoint's prices.
        explain: Write the document's id and what the query was asked to be beside each row.
        dry_run: Print the prompts of a few documents and an estimate of the tokens; ask nothing, write nothing.
    """

    data: str
    model: str
    output: str | None = None
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    personas: str | None = None
    candidates: int = 5
    embedder: str | None = None
    question_types: dict[str, str] = field(default_factory=QUESTION_TYPES.copy)
    difficulties: dict[str, str] = field(default_factory=DIFFICULTIES.copy)
    lengths: dict[str, float] = field(default_factory=LENGTHS.copy)
    languages: dict[str, float] = field(default_factory=lambda: {"document": 1.0})
    instruction: str | None = None
    limit: int | None = None
    min_characters: int = 50
    max_characters: int = 6000
    temperature: float = 0.7
    max_tokens: int = 300
    attempts: int = 3
    batch_size: int = 16
    seed: int = 42
    budget: float | None = None
    explain: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("candidates", "min_characters", "max_characters", "max_tokens", "attempts", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
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
