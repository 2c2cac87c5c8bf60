"""What is said between us and the model about one document, whoever carries it there and back.

A conversation is a generator: it yields a `Question`, is sent the `Reply`, and ends with a query or the reason why
there is none. A reply is asked for again, with what was wrong about it, until it can be used or attempts are used up.
The same replies give the same end, so a conversation can be gone through again from what was recorded of it.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from nestling.synthesis.answers import InvalidAnswer, Setup, read_query, read_setup, whole_characters
from nestling.synthesis.brief import Brief, Choices
from nestling.synthesis.prompts import AGAIN, query_prompt, setup_prompt

T = TypeVar("T")

Message = dict[str, str]

# Of an answer that could not be used, so much is repeated to the model.
REPEATED = 1000
CUT_OFF = "length"


@dataclass(frozen=True)
class Question:
    """What is asked of the model.

    Args:
        messages: Roles and contents, by turns user and assistant, as chat templates and OpenAI's API take them.
        seed: Of the sampling of the answer.
    """

    messages: list[Message]
    seed: int


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Args:
        text: All it wrote; empty for a response that held no answer.
        finish: Why it stopped, in the words of OpenAI's API; `CUT_OFF` where max_tokens ended it.
        tokens_in: Tokens of the prompt; None if the server did not say.
        tokens_out: Tokens of the answer, likewise.
    """

    text: str
    finish: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a conversation ended.

    Args:
        query: The query; None if there is none.
        setup: What the model decided in the first step, if it did.
        failure: Why there is no query.
        rejected: Kinds of answers that could not be used.
    """

    query: str | None
    setup: Setup | None
    failure: str | None
    rejected: tuple[str, ...]


Conversation = Generator[Question, Reply, Outcome]


class NoAnswer(Exception):  # noqa: N818 - thrown into a conversation in place of a reply
    """A document's question got no answer; the text says why."""


def converse(passage: str, brief: Brief, choices: Choices, attempts: int) -> Conversation:
    """Both steps of one document.

    Args:
        passage: What the model sees of it.
        brief: What was drawn for it.
        choices: What the model chooses from.
        attempts: How often each step is asked for.
    """
    rejected: list[str] = []
    setup = None
    try:
        prompt = setup_prompt(passage, brief, choices)
        read_first = partial(read_setup, brief=brief, choices=choices)
        setup = yield from settle(prompt, read_first, range(brief.seed, brief.seed + 2 * attempts, 2), rejected)
        prompt = query_prompt(passage, setup.character, setup.question_type, setup.difficulty, brief, choices)
        read = partial(read_query, passage=passage, brief=brief)
        query = yield from settle(prompt, read, range(brief.seed + 1, brief.seed + 1 + 2 * attempts, 2), rejected)
    except InvalidAnswer as error:
        return Outcome(None, setup, error.kind, tuple(rejected))
    return Outcome(query, setup, None, tuple(rejected))


def settle(prompt: str, read: Callable[[str], T], seeds: range, rejected: list[str]) -> Generator[Question, Reply, T]:
    """Ask until an answer can be used, once for each seed; the last is raised if none can.

    Kinds of answers that could not be used are added to `rejected`.
    """
    messages = [{"role": "user", "content": prompt}]
    for seed in seeds:
        reply = yield Question(messages, seed)
        try:
            return read_whole(reply, read)
        except InvalidAnswer as error:
            rejected.append(error.kind)
            messages = corrected(prompt, reply, error)
            last = error
    raise last


def read_whole(reply: Reply, read: Callable[[str], T]) -> T:
    if not reply.text.strip():
        raise InvalidAnswer("empty answer", "it is empty")
    if reply.finish == CUT_OFF:
        raise InvalidAnswer("answer cut off", "it is too long and was cut off; write the JSON object at once")
    return read(reply.text)


def corrected(prompt: str, reply: Reply, error: InvalidAnswer) -> list[Message]:
    """The question again, after the answer and what is wrong with it; after nothing if nothing was said."""
    asked = [{"role": "user", "content": prompt}]
    if not reply.text.strip():
        return asked
    said = {"role": "assistant", "content": whole_characters(reply.text[:REPEATED])}
    return [*asked, said, {"role": "user", "content": whole_characters(AGAIN.format(reason=error))}]


def replay(conversation: Conversation, replies: Iterable[Reply]) -> Outcome | None:
    """The end of a conversation whose replies are known; None if it goes on behind them."""
    try:
        next(conversation)
        for reply in replies:
            conversation.send(reply)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
    return None
