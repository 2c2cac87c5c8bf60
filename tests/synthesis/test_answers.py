import re

import pytest

from nestling.synthesis.answers import InvalidAnswer, count_words, find_json_object, read_configuration, read_query
from nestling.synthesis.query_spec import QueryConfiguration, QueryOptions, QuerySpec

BRIEF = QuerySpec(("a nurse", "a cook"), least=2, most=6, language="document", seed=1)
CHOICES = QueryOptions(
    {"keywords": "terms", "yes_no": "yes or no"}, {"easy": "e", "hard": "h"}, {"2-6": 1}, {"document": 1}
)
PASSAGE = "At 3,000 metres water boils at 90 degrees, so that potatoes take much longer than in a valley."
ANSWER = '{"character": 2, "question_type": "keywords", "difficulty": "hard"}'


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"Of course!\n```json\n{ANSWER}\n```\nI chose the cook.",
        f'<think>Perhaps {{"character": 1}}?</think>\n{ANSWER}',
        f'Perhaps {{"character": 1}}?</think>\n{ANSWER}',
        f'I begin {{"with": "another"}} and a {{ brace, then {ANSWER}',
        '{"character": "A cook", "question_type": "Keywords", "difficulty": " hard "}',
        '{"character": "2.", "question_type": "keywords", "difficulty": "hard", "why": {"because": "of potatoes"}}',
    ],
)
def test_a_configuration_is_found_in_any_answer(text: str) -> None:
    assert read_configuration(text, BRIEF, CHOICES) == QueryConfiguration("a cook", "keywords", "hard")


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("the cook", "no JSON object", 'no JSON object with the field "character"'),
        (ANSWER[:-1], "no JSON object", 'no JSON object with the field "character"'),
        ('["character"]', "no JSON object", 'no JSON object with the field "character"'),
        ("{" * 3000, "no JSON object", 'no JSON object with the field "character"'),
        (ANSWER.replace("2", "3"), "unknown character", '"character" is 3, expected a number from 1 to 2'),
        (ANSWER.replace("2", "0"), "unknown character", '"character" is 0, expected a number from 1 to 2'),
        (ANSWER.replace("2", '"a pilot"'), "unknown character", '"character" is a pilot, expected a number'),
        (ANSWER.replace("keywords", "riddle"), "unknown question_type", "is riddle, expected one of: keywords, yes_no"),
        ('{"character": 1, "question_type": "yes_no"}', "unknown difficulty", "is None, expected one of: easy, hard"),
    ],
)
def test_invalid_configurations(text: str, kind: str, told: str) -> None:
    with pytest.raises(InvalidAnswer, match=re.escape(told)) as error:
        read_configuration(text, BRIEF, CHOICES)
    assert error.value.kind == kind


def query(text: str) -> str:
    return read_query(f'{{"query": "{text}"}}', [PASSAGE], BRIEF)


def test_a_query_comes_with_single_spaces_and_as_valid_text() -> None:
    assert query("  why cook\\n longer\tup high? \\ud800") == "why cook longer up high?"


def test_words_of_the_passage_may_be_the_query_but_not_its_sentences() -> None:
    assert query("water boils at 90 degrees") == "water boils at 90 degrees"
    with pytest.raises(InvalidAnswer, match="copies the passage"):
        query("AT 3000 METRES - water boils at 90 degrees so that")
    with pytest.raises(InvalidAnswer, match="copies the passage"):
        read_query('{"query": "Ls -L"}', ["other", "ls -l"], BRIEF)


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ('{"query": ""}', "empty query", "the query is empty"),
        ('{"query": "…"}', "empty query", "the query is empty"),
        ('{"query": ["a"]}', "empty query", "the query is empty"),
        (f'{{"query": "{"why " * 13}"}}', "query too long", "has 13 words, and 2 to 6 were asked for"),
        ('{"question": "why?"}', "no JSON object", 'no JSON object with the field "query"'),
    ],
)
def test_invalid_queries(text: str, kind: str, told: str) -> None:
    with pytest.raises(InvalidAnswer, match=told) as error:
        read_query(text, [PASSAGE], BRIEF)
    assert error.value.kind == kind


def test_objects_inside_others_are_not_answers() -> None:
    with pytest.raises(InvalidAnswer, match="no JSON object"):
        find_json_object('{"answer": {"query": "inner"}}', "query")


def test_words_are_counted_in_scripts_without_spaces() -> None:
    assert count_words("how does it boil?") == 4
    assert count_words("高山上水的沸點") == 4  # seven characters
    assert count_words("BM25 是什麼") == 3
