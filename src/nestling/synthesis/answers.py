"""Parsing and validation of the answers of the language model."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nestling.records.words import WORDS, folded_text
from nestling.synthesis.query_spec import GRADES, QueryConfiguration, QueryOptions, QuerySpec

# A query of at most this many words may occur in the passage verbatim, as keywords and names do.
MAX_COPIED_WORDS = 8
# Reasoning of the model. Some chat templates contain the opening tag, so that the answer has the closing one only.
THOUGHTS = re.compile(r"\A(?:(?!<think>).)*</think>|<think>.*?</think>", re.DOTALL)
DECODER = json.JSONDecoder(strict=False)


class InvalidAnswer(ValueError):  # noqa: N818 - a property of an answer, which is asked for again
    """An answer that cannot be used.

    Args:
        kind: Kind of the problem, for the statistics.
        message: Description of the problem, for the model.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_configuration(text: str, spec: QuerySpec, options: QueryOptions) -> QueryConfiguration:
    """Parse the answer of the configuration step. Raises InvalidAnswer."""
    answer = find_json_object(text, "character")
    return QueryConfiguration(
        character=find_persona(answer["character"], spec),
        question_type=find_option(answer, "question_type", options.question_types),
        difficulty=find_option(answer, "difficulty", options.difficulties),
    )


def read_query(text: str, passages: Sequence[str], spec: QuerySpec) -> str:
    """Parse the answer of the query generation step: the query, with single spaces. Raises InvalidAnswer."""
    query = find_json_object(text, "query")["query"]
    if not isinstance(query, str) or not folded_text(query):
        raise InvalidAnswer("empty query", "the query is empty")
    query = " ".join(without_lone_surrogates(query).split())
    words = count_words(query)
    if words > 2 * spec.most:
        raise InvalidAnswer(
            "query too long", f"the query has {words} words, and {spec.least} to {spec.most} were asked for"
        )
    if any(copies(query, words, passage) for passage in passages):
        raise InvalidAnswer("query copies the passage", "the query copies the passage; use other words")
    return query


def copies(query: str, words: int, passage: str) -> bool:
    """Whether a query of a number of words is a passage, or a long part of it."""
    folded_query, folded_passage = folded_text(query), folded_text(passage)
    return folded_query == folded_passage or (words > MAX_COPIED_WORDS and folded_query in folded_passage)


def read_grades(text: str, criteria: Sequence[str]) -> dict[str, int]:
    """Parse the answer of the judgement step: a grade by each of the criteria. Raises InvalidAnswer."""
    answer = find_json_object(text, criteria[0])
    grades = {}
    for name in criteria:
        given = str(answer.get(name)).strip()
        if given not in map(str, GRADES):
            raise InvalidAnswer("unknown grade", f'"{name}" is {given[:60]}, expected a number from 1 to {GRADES[-1]}')
        grades[name] = int(given)
    return grades


def find_json_object(text: str, field: str) -> dict[str, Any]:
    """The first JSON object in a text that has a field. Raises InvalidAnswer."""
    for answer in json_objects(THOUGHTS.sub("", text)):
        if field in answer:
            return answer
    raise InvalidAnswer("no JSON object", f'there is no JSON object with the field "{field}" in it')


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """All JSON objects in a text that are not nested in another."""
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = DECODER.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)


def find_persona(value: Any, spec: QuerySpec) -> str:
    """The persona that the model named by its number, as the prompt asks, or by its text. Raises InvalidAnswer."""
    named = {persona.casefold(): persona for persona in spec.personas}
    numbered = {str(number): persona for number, persona in enumerate(spec.personas, start=1)}
    given = str(value).strip()
    found = numbered.get(given.rstrip(".")) or named.get(given.casefold())
    if found is None:
        raise InvalidAnswer(
            "unknown character", f'"character" is {given[:60]}, expected a number from 1 to {len(spec.personas)}'
        )
    return found


def find_option(answer: dict[str, Any], field: str, names: Iterable[str]) -> str:
    """The option that a field of an answer names, in any case. Raises InvalidAnswer."""
    given = str(answer.get(field)).strip()
    for name in names:
        if given.casefold() == name.casefold():
            return name
    raise InvalidAnswer(f"unknown {field}", f'"{field}" is {given[:60]}, expected one of: {", ".join(names)}')


def without_lone_surrogates(text: str) -> str:
    """A text without lone surrogates, which are valid in JSON but not in UTF-8."""
    return text.encode(errors="ignore").decode()


def count_words(text: str) -> int:
    """Number of words; in scripts without spaces between words, and in Korean, two characters count as one word."""
    return sum(-(-len(match[0]) // 2) if match[1] else 1 for match in WORDS.finditer(text))
