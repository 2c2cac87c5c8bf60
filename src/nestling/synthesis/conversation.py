"""The conversation with a language model about one document or several, independent of how requests are sent.

A conversation is a generator: it yields a `ChatRequest`, is sent the `Completion`, and returns a `ConversationResult`
with the query or the reason for its absence. An invalid answer is asked for again, with a description of the problem,
up to a number of attempts. A conversation is deterministic given the completions, so its result can be computed again
from recorded ones.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from nestling.synthesis.answers import (
    InvalidAnswer,
    read_configuration,
    read_grades,
    read_query,
    without_lone_surrogates,
)
from nestling.synthesis.prompts import RETRY, configuration_prompt, judgement_prompt, query_prompt
from nestling.synthesis.query_spec import QueryConfiguration, QueryOptions, QuerySpec, criteria_of

T = TypeVar("T")

Message = dict[str, str]

# The step that judges; its seeds are far from those of the two before.
JUDGE = 1 << 20
# Characters of an invalid answer that are sent back to the model.
MAX_QUOTED = 1000
MAX_TOKENS_REACHED = "length"  # finish_reason of OpenAI's API


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion.

    Args:
        messages: Roles and contents, alternating between user and assistant, as in OpenAI's API.
        seed: Seed of sampling.
    """

    messages: list[Message]
    seed: int


@dataclass(frozen=True)
class Completion:
    """A chat completion.

    Args:
        text: The generated text; may be empty.
        finish: finish_reason of OpenAI's API; `MAX_TOKENS_REACHED` if max_tokens ended the text.
        tokens_in: Tokens of the prompt; None if the server did not report usage.
        tokens_out: Tokens of the generated text, likewise.
    """

    text: str
    finish: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True)
class ConversationResult:
    """Result of a conversation.

    Args:
        query: The query; None if there is no valid one, or its grades are too low.
        configuration: What the model chose in the configuration step; None without a valid choice.
        failure: Why there is no query.
        rejected: Kinds of the invalid answers.
        judged: The query that was judged, with its grade by each criterion; None if none was.
    """

    query: str | None
    configuration: QueryConfiguration | None
    failure: str | None
    rejected: tuple[str, ...]
    judged: tuple[str, dict[str, int]] | None = None


Conversation = Generator[ChatRequest, Completion, ConversationResult]


class NoAnswer(Exception):  # noqa: N818 - thrown into a conversation in place of a completion
    """A request for a document got no completion; the text is the reason."""


def converse(
    passages: Sequence[str], spec: QuerySpec, options: QueryOptions, attempts: int, min_grade: int | None = None
) -> Conversation:
    """The steps for one query.

    Args:
        passages: The part of each document that the model sees; the query needs all of them.
        spec: What was drawn for the query.
        options: The types of query and difficulties to choose from.
        attempts: Maximum number of requests in each step.
        min_grade: The lowest grade, by whichever criterion, of a query that is kept; None to judge none.
    """
    rejected: list[str] = []
    configuration = None
    try:
        prompt = configuration_prompt(passages, spec, options)
        parse = partial(read_configuration, spec=spec, options=options)
        configuration = yield from ask_until_valid(prompt, parse, step_seeds(spec, 0, attempts), rejected)
        prompt = query_prompt(passages, configuration, spec, options)
        parse_query = partial(read_query, passages=passages, spec=spec)
        query = yield from ask_until_valid(prompt, parse_query, step_seeds(spec, 1, attempts), rejected)
    except InvalidAnswer as error:
        return ConversationResult(None, configuration, error.kind, tuple(rejected))
    if min_grade is None:
        return ConversationResult(query, configuration, None, tuple(rejected))
    try:
        prompt = judgement_prompt(passages, query)
        parse_grades = partial(read_grades, criteria=list(criteria_of(len(passages))))
        grades = yield from ask_until_valid(prompt, parse_grades, step_seeds(spec, JUDGE, attempts), rejected)
    except InvalidAnswer as error:
        return ConversationResult(None, configuration, f"not judged: {error.kind}", tuple(rejected))
    low = [name for name, grade in grades.items() if grade < min_grade]
    failure = f"not {' and not '.join(low)} enough" if low else None
    return ConversationResult(None if low else query, configuration, failure, tuple(rejected), (query, grades))


def step_seeds(spec: QuerySpec, step: int, attempts: int) -> range:
    """The seeds of the attempts of a step (0, 1 or `JUDGE`)."""
    return range(spec.seed + step, spec.seed + step + 2 * attempts, 2)


def ask_until_valid(
    prompt: str, parse: Callable[[str], T], seeds: range, rejected: list[str]
) -> Generator[ChatRequest, Completion, T]:
    """Request completions, one for each seed, until `parse` accepts one; else raise the last InvalidAnswer.

    The kinds of invalid answers are appended to `rejected`.
    """
    messages = [{"role": "user", "content": prompt}]
    for seed in seeds:
        completion = yield ChatRequest(messages, seed)
        try:
            return parse_completion(completion, parse)
        except InvalidAnswer as error:
            rejected.append(error.kind)
            messages = retry_messages(prompt, completion, error)
            last = error
    raise last


def parse_completion(completion: Completion, parse: Callable[[str], T]) -> T:
    """Parse a completion that is neither empty nor cut off. Raises InvalidAnswer."""
    if not completion.text.strip():
        raise InvalidAnswer("empty answer", "it is empty")
    if completion.finish == MAX_TOKENS_REACHED:
        raise InvalidAnswer("answer cut off", "it is too long and was cut off; write the JSON object at once")
    return parse(completion.text)


def retry_messages(prompt: str, completion: Completion, error: InvalidAnswer) -> list[Message]:
    """The prompt, the invalid answer and a description of the problem; only the prompt if the answer is empty."""
    first = [{"role": "user", "content": prompt}]
    if not completion.text.strip():
        return first
    invalid = {"role": "assistant", "content": without_lone_surrogates(completion.text[:MAX_QUOTED])}
    return [*first, invalid, {"role": "user", "content": without_lone_surrogates(RETRY.format(reason=error))}]


def replay(conversation: Conversation, completions: Iterable[Completion]) -> ConversationResult | None:
    """Result of a conversation with recorded completions; None if they do not complete it."""
    try:
        next(conversation)
        for completion in completions:
            conversation.send(completion)
    except StopIteration as end:
        result: ConversationResult = end.value
        return result
    return None
