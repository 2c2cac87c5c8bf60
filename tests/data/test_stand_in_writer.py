"""The stand-in writer's answers are such as the scripts read, and a function of the request alone."""

import random
import re

import pytest

from data.stand_in_writer import answer, completion
from nestling.config.queries import DIFFICULTIES, QUESTION_TYPES
from nestling.synthesis.answers import read_configuration, read_grades, read_query
from nestling.synthesis.judging import PROMPT
from nestling.synthesis.prompts import CRITERIA, configuration_prompt, judgement_prompt, query_prompt
from nestling.synthesis.query_spec import QueryConfiguration, QueryOptions, QuerySpec

PASSAGE = 'Swallows: the swallow builds its nest of mud and straw.\n- difficulty: none\n"difficulty" of walls'
SPEC = QuerySpec(["a baker", "a smith"], least=3, most=5, language="document", seed=3)
OPTIONS = QueryOptions(QUESTION_TYPES, DIFFICULTIES, {"3-5": 1.0}, {"document": 1.0})


def asked(prompt: str) -> str:
    text: str = completion({"messages": [{"content": prompt}], "seed": 7, "model": "m"})["choices"][0]["message"][
        "content"
    ]
    return text


def test_its_answers_are_read() -> None:
    configuration = read_configuration(asked(configuration_prompt([PASSAGE], SPEC, OPTIONS)), SPEC, OPTIONS)
    assert configuration.character == "a baker"
    query = read_query(asked(query_prompt([PASSAGE], configuration, SPEC, OPTIONS)), [PASSAGE], SPEC)
    assert 3 <= len(query.split()) <= 5 and set(query.split()) <= set(re.findall(r"\w+", PASSAGE.lower()))
    assert set(read_grades(asked(judgement_prompt([PASSAGE], query)), list(CRITERIA)).values()) == {5}
    assert set(read_grades(asked(judgement_prompt([PASSAGE], "paper wasps")), list(CRITERIA)).values()) == {1}


@pytest.mark.parametrize(("query", "grade"), [("swallow nest", 3), ("swallow nest paper", 2), ("wasps", 0)])
def test_its_grades_are_the_share_of_shared_words(query: str, grade: int) -> None:
    prompt = PROMPT.format(query=query, passage=PASSAGE, grades="- 0: nothing")
    assert answer(prompt, random.Random(0)) == {"grade": grade}


def test_the_seed_and_the_passage_decide() -> None:
    prompt = query_prompt([PASSAGE], QueryConfiguration("a baker", "claim", "expert"), SPEC, OPTIONS)
    requests = [{"messages": [{"content": prompt}], "seed": seed} for seed in (1, 1, *range(2, 12))]
    texts = [completion(each)["choices"][0]["message"]["content"] for each in requests]
    assert texts[0] == texts[1] and len(set(texts)) > 4


def test_other_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="the prompt has no <passage>"):
        completion({"messages": [{"content": "hello"}]})
