"""What a model may choose from when it writes a query, and what is drawn for it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nestling.config.queries import LENGTH

T = TypeVar("T")

OWN_LANGUAGE = "document"


@dataclass(frozen=True)
class Choices:
    """What all documents have in common.

    Args:
        question_types: What each type of query means, by its name.
        difficulties: What each difficulty means, by its name.
        lengths: Weights of ranges of words, such as 2-6.
        languages: Weights of languages; `OWN_LANGUAGE` is the document's.
    """

    question_types: Mapping[str, str]
    difficulties: Mapping[str, str]
    lengths: Mapping[str, float]
    languages: Mapping[str, float]


@dataclass(frozen=True)
class Brief:
    """What is asked of the model for one document.

    Args:
        characters: Searchers that it chooses from.
        least: Words of the query at least.
        most: Words of the query at most.
        language: Of the query; `OWN_LANGUAGE` is the document's.
        seed: Of the model's sampling, below 2^31 by a wide margin, so that attempts can be added.
    """

    characters: Sequence[str]
    least: int
    most: int
    language: str
    seed: int


def draw_brief(document: int, personas: Sequence[str], candidates: int, choices: Choices, seed: int) -> Brief:
    """The brief of a document, which depends on its identity and the seed alone.

    Args:
        document: Identity of its text.
        personas: All searchers, or those that suit the document.
        candidates: How many of them the model chooses from.
        choices: What is drawn from.
        seed: Of all draws.
    """
    draw = random.Random(f"{seed} {document}")
    length = LENGTH.fullmatch(weighted(draw, choices.lengths))
    assert length is not None
    language = weighted(draw, choices.languages)
    sampling = draw.randrange(1 << 30)
    characters = draw.sample(personas, min(candidates, len(personas)))
    return Brief(tuple(characters), int(length[1]), int(length[2]), language, sampling)


def weighted(draw: random.Random, weights: Mapping[T, float]) -> T:
    """One of the keys, as often as its weight says."""
    return draw.choices(list(weights), list(weights.values()))[0]
