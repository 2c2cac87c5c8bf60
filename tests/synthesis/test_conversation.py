from dataclasses import replace

import pytest

from nestling.synthesis.conversation import ChatRequest, Completion, Conversation, ConversationResult, converse, replay
from nestling.synthesis.query_spec import QueryConfiguration, QueryOptions, QuerySpec, draw_query_spec

SPEC = QuerySpec(("a nurse", "a cook"), least=2, most=6, language="German", seed=100)
OPTIONS = QueryOptions({"keywords": "terms"}, {"easy": "e"}, {"2-6": 1}, {"German": 1})
PASSAGE = "Water boils at 90 degrees on a summit of 3,000 metres."
GOOD = Completion('{"character": 2, "question_type": "keywords", "difficulty": "easy"}')
QUERY = Completion('{"query": "Kochzeit auf Gipfeln"}')
CONFIGURATION = QueryConfiguration("a cook", "keywords", "easy")


def conversation(attempts: int = 3) -> Conversation:
    return converse([PASSAGE], SPEC, OPTIONS, attempts)


def requests(completions: list[Completion]) -> list[ChatRequest]:
    """The requests of a conversation that some completions do not end."""
    running = conversation()
    return [next(running), *(running.send(completion) for completion in completions)]


def test_two_steps_lead_to_a_query() -> None:
    first, second = requests([GOOD])
    assert [message["role"] for message in first.messages + second.messages] == ["user", "user"]
    for part in (PASSAGE, "1. a nurse\n2. a cook", "- keywords: terms", "- easy: e"):
        assert part in first.messages[0]["content"]
    for part in (PASSAGE, "Person: a cook", "keywords (terms)", "easy (e)", "2 to 6 words", "Language: German"):
        assert part in second.messages[0]["content"]
    assert replay(conversation(), [GOOD, QUERY]) == ConversationResult("Kochzeit auf Gipfeln", CONFIGURATION, None, ())


def test_the_model_is_told_what_is_invalid() -> None:
    wrong = Completion(GOOD.text.replace("2", "7"))
    first, second, third = requests([wrong, GOOD])
    invalid, message_to_model = second.messages[1:]
    assert second.messages[0] == first.messages[0]
    assert invalid == {"role": "assistant", "content": wrong.text}
    assert (
        message_to_model["role"] == "user"
        and '"character" is 7, expected a number from 1 to 2' in message_to_model["content"]
    )
    assert len({request.seed for request in (first, second, third)}) == 3
    assert "Write the query" in third.messages[0]["content"] and len(third.messages) == 1
    assert replay(conversation(), [wrong, GOOD, QUERY]) == ConversationResult(
        "Kochzeit auf Gipfeln", CONFIGURATION, None, ("unknown character",)
    )


def test_an_empty_answer_is_not_repeated_to_the_model() -> None:
    first, second = requests([Completion("")])
    assert second.messages == first.messages and second.seed != first.seed


@pytest.mark.parametrize("text", ["no \ud83d", GOOD.text.replace("2", '"\\ud83d"')], ids=["said", "quoted"])
def test_messages_to_the_model_have_no_lone_surrogates(text: str) -> None:
    _, second = requests([Completion(text)])
    for message in second.messages:
        assert message["content"].encode().decode() == message["content"]


def test_an_answer_that_was_cut_off_is_invalid() -> None:
    result = replay(conversation(attempts=1), [Completion(GOOD.text, finish="length")])
    assert result == ConversationResult(None, None, "answer cut off", ("answer cut off",))


def test_attempts_are_for_each_step() -> None:
    bad = Completion("no")
    result = replay(conversation(attempts=2), [bad, GOOD, bad, Completion("")])
    assert result == ConversationResult(
        None, CONFIGURATION, "empty answer", ("no JSON object", "no JSON object", "empty answer")
    )


@pytest.mark.parametrize("completions", [[], [GOOD], [Completion("no"), Completion("no")]])
def test_an_incomplete_conversation_has_no_result(completions: list[Completion]) -> None:
    assert replay(conversation(), completions) is None


def judged(*completions: Completion, min_grade: int = 4) -> ConversationResult | None:
    return replay(converse([PASSAGE], SPEC, OPTIONS, 2, min_grade), [GOOD, QUERY, *completions])


def test_a_query_is_kept_from_a_grade_by_every_criterion() -> None:
    grades = Completion('{"answerable": 5, "specific": 4, "natural": "5"}')
    told = {"answerable": 5, "specific": 4, "natural": 5}
    kept = ConversationResult("Kochzeit auf Gipfeln", CONFIGURATION, None, (), ("Kochzeit auf Gipfeln", told))
    assert judged(grades) == kept
    assert judged(grades, min_grade=5) == replace(kept, query=None, failure="not specific enough")
    assert judged() is None
    bad = Completion('{"answerable": 6, "specific": 4, "natural": 5}')
    assert judged(bad, grades) == replace(kept, rejected=("unknown grade",))
    failure = "not judged: unknown grade"
    assert judged(bad, bad) == ConversationResult(None, CONFIGURATION, failure, ("unknown grade",) * 2)


def test_the_judge_sees_query_passage_and_criteria_and_nothing_else() -> None:
    running = converse([PASSAGE], SPEC, OPTIONS, 2, 4)
    asked = [next(running), running.send(GOOD), running.send(QUERY)]
    (message,) = asked[-1].messages
    for part in ("Query: Kochzeit auf Gipfeln\n", PASSAGE, "- answerable: ", "- specific: ", "- natural: "):
        assert part in message["content"]
    assert "cook" not in message["content"]
    assert len({each.seed for each in asked}) == 3


def test_specs_depend_only_on_the_document_and_the_seed() -> None:
    personas = [f"person {i}" for i in range(30)]
    options = QueryOptions({"a": "a"}, {"a": "a"}, {"2-6": 3, "7-20": 1}, {"document": 1, "German": 1})
    specs = [draw_query_spec(document, personas, 5, options, 42) for document in range(400)]
    assert specs == [draw_query_spec(document, personas, 5, options, 42) for document in range(400)]
    assert specs[0] != draw_query_spec(0, personas, 5, options, 43)
    assert all(len(set(spec.personas)) == 5 and set(spec.personas) <= set(personas) for spec in specs)
    assert len({spec.personas[0] for spec in specs}) == 30
    assert len({spec.seed for spec in specs}) == 400
    assert sum((spec.least, spec.most) == (2, 6) for spec in specs) == pytest.approx(300, abs=40)
    assert sum(spec.language == "German" for spec in specs) == pytest.approx(200, abs=40)
