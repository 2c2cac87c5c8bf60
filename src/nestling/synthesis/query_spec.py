"""The properties of queries: those that the model may choose, and those that are drawn for a document."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nestling.config.queries import LENGTH

T = TypeVar("T")

DOCUMENT_LANGUAGE = "document"


# What a query is judged by, each with what a high grade means.
CRITERIA = {
    "answerable": "the passage alone answers the query, in full",
    "specific": "the query names what it is about, so that few other passages answer it as well",
    "natural": "a person who has not seen the passage would send it to a search engine in these words",
}
# The type of a query that needs several passages, and what it is judged by.
MULTI_HOP = "multi_hop"
MULTI_HOP_MEANING = "a question whose answer has to be put together from all of the passages"
MULTI_HOP_CRITERIA = {
    **CRITERIA,
    "answerable": "the passages together answer the query, in full",
    MULTI_HOP: "no single passage answers the query; each of them is needed",
}
GRADES = range(1, 6)


@dataclass(frozen=True)
class QueryOptions:
    """Options that are the same for all documents.

    Args:
        question_types: Name -> meaning of each type of query.
        difficulties: Name -> meaning of each difficulty.
        lengths: Range of words such as 2-6 -> weight.
        languages: Language -> weight; `DOCUMENT_LANGUAGE` is that of the document.
    """

    question_types: Mapping[str, str]
    difficulties: Mapping[str, str]
    lengths: Mapping[str, float]
    languages: Mapping[str, float]


@dataclass(frozen=True)
class QuerySpec:
    """The properties of a query that are drawn for one document.

    Args:
        personas: Personas that the model chooses from.
        least: Minimum number of words.
        most: Maximum number of words.
        language: Language; `DOCUMENT_LANGUAGE` is that of the document.
        seed: Seed of the first request, below 2^30, so that the number of the attempt can be added.
    """

    personas: Sequence[str]
    least: int
    most: int
    language: str
    seed: int


@dataclass(frozen=True)
class QueryConfiguration:
    """What the model chose in the configuration step.

    Args:
        character: The persona.
        question_type: Name of the type of query.
        difficulty: Name of the difficulty.
    """

    character: str
    question_type: str
    difficulty: str


def criteria_of(passages: int) -> Mapping[str, str]:
    """What a query of a number of passages is judged by."""
    return CRITERIA if passages == 1 else MULTI_HOP_CRITERIA


def longest(lengths: Mapping[str, float]) -> str:
    """The range with the highest number of words."""
    return max(lengths, key=lambda length: int(length.split("-")[1]))


def draw_query_spec(
    document: int, personas: Sequence[str], candidates: int, options: QueryOptions, seed: int
) -> QuerySpec:
    """Draw the spec of a document; it depends only on the id of its text and the seed.

    Args:
        document: `text_id` of the document.
        personas: The personas to draw from.
        candidates: Number of personas to draw.
        options: The lengths and languages to draw from.
        seed: Seed of the run.
    """
    draw = random.Random(f"{seed} {document}")
    length = LENGTH.fullmatch(weighted(draw, options.lengths))
    assert length is not None
    language = weighted(draw, options.languages)
    sampling = draw.randrange(1 << 30)
    personas = draw.sample(personas, min(candidates, len(personas)))
    return QuerySpec(tuple(personas), int(length[1]), int(length[2]), language, sampling)


def weighted(draw: random.Random, weights: Mapping[T, float]) -> T:
    """Draw a key with a probability proportional to its weight."""
    return draw.choices(list(weights), list(weights.values()))[0]
