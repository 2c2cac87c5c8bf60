"""Answers of the model: found among what it wrote, checked, or refused with a reason that it is told."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nestling.records.words import WORDS, letters
from nestling.synthesis.brief import Brief, Choices

# A query of so many words may stand in the passage word for word, as keywords and names do.
COPIED_WORDS = 8
# Some chat templates open the thoughts themselves, and the server sends only their end.
THOUGHTS = re.compile(r"\A(?:(?!<think>).)*</think>|<think>.*?</think>", re.DOTALL)
DECODER = json.JSONDecoder(strict=False)


class InvalidAnswer(ValueError):  # noqa: N818 - it says what an answer is, and is no failure yet
    """An answer that cannot be used.

    Args:
        kind: What is wrong, to be counted.
        told: What is wrong, for the model.
    """

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(told)
        self.kind = kind


@dataclass(frozen=True)
class Setup:
    """What the model decided in the first step.

    Args:
        character: The searcher.
        question_type: The type of query.
        difficulty: Its difficulty.
    """

    character: str
    question_type: str
    difficulty: str


def read_setup(text: str, brief: Brief, choices: Choices) -> Setup:
    """The decisions in an answer. Raises InvalidAnswer."""
    answer = find_object(text, "character")
    return Setup(
        character=find_character(answer["character"], brief),
        question_type=find_name(answer, "question_type", choices.question_types),
        difficulty=find_name(answer, "difficulty", choices.difficulties),
    )


def read_query(text: str, passage: str, brief: Brief) -> str:
    """The query in an answer, with single spaces. Raises InvalidAnswer."""
    query = find_object(text, "query")["query"]
    if not isinstance(query, str) or not letters(query):
        raise InvalidAnswer("empty query", "the query is empty")
    query = " ".join(whole_characters(query).split())
    words = count_words(query)
    if words > 2 * brief.most:
        raise InvalidAnswer(
            "query too long", f"the query has {words} words, and {brief.least} to {brief.most} were asked for"
        )
    if letters(query) == letters(passage) or (words > COPIED_WORDS and letters(query) in letters(passage)):
        raise InvalidAnswer("query copies the passage", "the query copies the passage; use other words")
    return query


def find_object(text: str, field: str) -> dict[str, Any]:
    """The first JSON object with a field, wherever it stands in a text. Raises InvalidAnswer."""
    for answer in objects(THOUGHTS.sub("", text)):
        if field in answer:
            return answer
    raise InvalidAnswer("no JSON object", f'there is no JSON object with the field "{field}" in it')


def objects(text: str) -> Iterator[dict[str, Any]]:
    """All JSON objects of a text that are not part of another."""
    at = text.find("{")
    while at >= 0:
        end = at + 1
        try:
            value, end = DECODER.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):
            pass
        at = text.find("{", end)


def find_character(value: Any, brief: Brief) -> str:
    """By number, as was asked for, or by name, as some models answer."""
    named = {character.casefold(): character for character in brief.characters}
    numbered = {str(number): character for number, character in enumerate(brief.characters, start=1)}
    said = str(value).strip()
    found = numbered.get(said.rstrip(".")) or named.get(said.casefold())
    if found is None:
        raise InvalidAnswer(
            "unknown character", f'"character" is {said[:60]}, expected a number from 1 to {len(brief.characters)}'
        )
    return found


def find_name(answer: dict[str, Any], field: str, names: Iterator[str] | Any) -> str:
    said = str(answer.get(field)).strip()
    for name in names:
        if said.casefold() == name.casefold():
            return str(name)
    raise InvalidAnswer(f"unknown {field}", f'"{field}" is {said[:60]}, expected one of: {", ".join(names)}')


def whole_characters(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON may hold and UTF-8 may not."""
    return text.encode(errors="ignore").decode()


def count_words(text: str) -> int:
    """Words of a text; two characters are one in scripts that set no spaces between words, and in Korean."""
    return sum(-(-len(match[0]) // 2) if match[1] else 1 for match in WORDS.finditer(text))
