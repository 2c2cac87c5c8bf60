import pytest

from nestling.synthesis.answers import Setup
from nestling.synthesis.brief import Brief, Choices, draw_brief
from nestling.synthesis.conversation import Conversation, Outcome, Question, Reply, converse, replay

BRIEF = Brief(("a nurse", "a cook"), least=2, most=6, language="German", seed=100)
CHOICES = Choices({"keywords": "terms"}, {"easy": "e"}, {"2-6": 1}, {"German": 1})
PASSAGE = "Water boils at 90 degrees on a summit of 3,000 metres."
GOOD = Reply('{"character": 2, "question_type": "keywords", "difficulty": "easy"}')
QUERY = Reply('{"query": "Kochzeit auf Gipfeln"}')
SETUP = Setup("a cook", "keywords", "easy")


def conversation(attempts: int = 3) -> Conversation:
    return converse(PASSAGE, BRIEF, CHOICES, attempts)


def asked(replies: list[Reply]) -> list[Question]:
    """The questions that some replies, which do not end the conversation, lead to."""
    talk = conversation()
    return [next(talk), *(talk.send(reply) for reply in replies)]


def test_two_steps_lead_to_a_query() -> None:
    first, second = asked([GOOD])
    assert [each["role"] for each in first.messages + second.messages] == ["user", "user"]
    for part in (PASSAGE, "1. a nurse\n2. a cook", "- keywords: terms", "- easy: e"):
        assert part in first.messages[0]["content"]
    for part in (PASSAGE, "Person: a cook", "keywords (terms)", "easy (e)", "2 to 6 words", "Language: German"):
        assert part in second.messages[0]["content"]
    assert replay(conversation(), [GOOD, QUERY]) == Outcome("Kochzeit auf Gipfeln", SETUP, None, ())


def test_the_model_is_told_what_was_wrong() -> None:
    wrong = Reply(GOOD.text.replace("2", "7"))
    first, second, third = asked([wrong, GOOD])
    said, told = second.messages[1:]
    assert second.messages[0] == first.messages[0]
    assert said == {"role": "assistant", "content": wrong.text}
    assert told["role"] == "user" and '"character" is 7, expected a number from 1 to 2' in told["content"]
    assert len({each.seed for each in (first, second, third)}) == 3
    assert "Write the query" in third.messages[0]["content"] and len(third.messages) == 1
    assert replay(conversation(), [wrong, GOOD, QUERY]) == Outcome(
        "Kochzeit auf Gipfeln", SETUP, None, ("unknown character",)
    )


def test_an_empty_answer_is_not_repeated_to_the_model() -> None:
    first, second = asked([Reply("")])
    assert second.messages == first.messages and second.seed != first.seed


@pytest.mark.parametrize("text", ["no \ud83d", GOOD.text.replace("2", '"\\ud83d"')], ids=["said", "quoted"])
def test_what_the_model_is_told_is_valid_text(text: str) -> None:
    _, second = asked([Reply(text)])
    for message in second.messages:
        assert message["content"].encode().decode() == message["content"]


def test_an_answer_that_was_cut_off_is_not_used() -> None:
    outcome = replay(conversation(attempts=1), [Reply(GOOD.text, finish="length")])
    assert outcome == Outcome(None, None, "answer cut off", ("answer cut off",))


def test_attempts_are_for_each_step() -> None:
    bad = Reply("no")
    outcome = replay(conversation(attempts=2), [bad, GOOD, bad, Reply("")])
    assert outcome == Outcome(None, SETUP, "empty answer", ("no JSON object", "no JSON object", "empty answer"))


@pytest.mark.parametrize("replies", [[], [GOOD], [Reply("no"), Reply("no")]])
def test_a_conversation_that_goes_on_has_no_outcome(replies: list[Reply]) -> None:
    assert replay(conversation(), replies) is None


def test_briefs_depend_on_the_document_and_the_seed_alone() -> None:
    personas = [f"person {i}" for i in range(30)]
    choices = Choices({"a": "a"}, {"a": "a"}, {"2-6": 3, "7-20": 1}, {"document": 1, "German": 1})
    briefs = [draw_brief(document, personas, 5, choices, 42) for document in range(400)]
    assert briefs == [draw_brief(document, personas, 5, choices, 42) for document in range(400)]
    assert briefs[0] != draw_brief(0, personas, 5, choices, 43)
    assert all(len(set(each.characters)) == 5 and set(each.characters) <= set(personas) for each in briefs)
    assert len({each.characters[0] for each in briefs}) == 30
    assert len({each.seed for each in briefs}) == 400
    assert sum((each.least, each.most) == (2, 6) for each in briefs) == pytest.approx(300, abs=40)
    assert sum(each.language == "German" for each in briefs) == pytest.approx(200, abs=40)
