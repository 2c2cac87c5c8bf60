"""The endpoint's client against a real server on this machine, which does everything wrong."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest

from nestling.synthesis.chat_models.endpoint import Endpoint
from nestling.synthesis.conversation import ChatRequest, Completion, NoAnswer
from synthesis.served import Answer, Request, Served, serving

PROMPT = 'Answer.\n<passage>\n{}\n</passage>\n"difficulty": how'
GOOD = Answer("fine")


class Heard:
    """What came back, by passage: the replies, or why there is none."""

    def __init__(self) -> None:
        self.replies: dict[str, Completion] = {}
        self.silence: dict[str, str] = {}
        self.done = 0

    def conversation(self, passage: str, seed: int = 5) -> Generator[ChatRequest, Completion, None]:
        try:
            self.replies[passage] = yield ChatRequest([{"role": "user", "content": PROMPT.format(passage)}], seed)
        except NoAnswer as error:
            self.silence[passage] = str(error)

    def count(self) -> None:
        self.done += 1


def endpoint(server: Served, **settings: Any) -> Endpoint:
    defaults: dict[str, Any] = {
        "concurrency": 4,
        "requests_per_minute": None,
        "timeout": 5,
        "retries": 1,
        "body": {"temperature": 0.5},
    }
    return Endpoint(server.url, "model-7", settings.pop("key", None), **{**defaults, **settings})


def run_conversations(writer: Endpoint, passages: list[str]) -> Heard:
    heard = Heard()
    writer.run_conversations(map(heard.conversation, passages), heard.count)
    return heard


def once(fault: Answer) -> Callable[[Request], Answer]:
    """A fault at the first request, and a valid answer at the next one."""
    return lambda request: fault if request.number == 0 else GOOD


def test_requests_have_all_fields() -> None:
    with serving(lambda request: GOOD) as server:
        writer = endpoint(server, key="secret", body={"temperature": 0.5, "seed": None, "top_p": 0.9})
        heard = run_conversations(writer, ["a"])
        run_conversations(endpoint(server), ["b"])
    assert heard.replies == {"a": Completion("fine", "stop", 100, 10)} and heard.done == 1
    first, second = server.requests
    messages = [{"role": "user", "content": PROMPT.format("a")}]
    assert first.body == {"model": "model-7", "messages": messages, "temperature": 0.5, "top_p": 0.9}
    assert first.key == "Bearer secret"
    assert second.body["seed"] == 5 and "secret" not in second.key
    assert "secret" not in repr(writer)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(status=500),
        Answer(status=503, headers={"Retry-After": "0.1"}),
        Answer("half of it", missing=30),
        Answer("late", delay=1),
        Answer(raw='{"choices": [{"message": {"content": "half'),
    ],
    ids=["500", "503", "half a body", "timeout", "broken JSON"],
)
def test_transient_faults_are_retried(fault: Answer) -> None:
    with serving(once(fault)) as server:
        writer = endpoint(server, timeout=0.4)
        heard = run_conversations(writer, ["a", "b"])
    assert {passage: reply.text for passage, reply in heard.replies.items()} == {"a": "fine", "b": "fine"}
    assert len(server.requests) == writer.requests == 4
    assert not heard.silence


def test_retry_after_is_waited_for() -> None:
    with serving(once(Answer(status=429, headers={"Retry-After": "1.2"}))) as server:
        assert run_conversations(endpoint(server), ["a"]).replies["a"].text == "fine"
    first, second = server.requests
    assert 1.15 < second.time - first.time < 2.5, "half a second is what the client waits otherwise"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Answer(status=429, headers={"Retry-After": "0.05"}), "status 429"),
        (Answer(status=500, headers={"Retry-After": "0.05"}), "status 500"),
        (Answer(status=400), "status 400"),
        (Answer(status=429, headers={"Retry-After": "3600"}), "status 429"),
        (Answer("half", missing=30), "no connection"),
        (Answer("late", delay=0.6), "timeout"),
    ],
)
def test_a_request_without_an_answer_does_not_stop_others(fault: Answer, why: str) -> None:
    with serving(lambda request: fault if request.passage == "bad" else GOOD) as server:
        heard = run_conversations(endpoint(server, timeout=0.3), ["a", "bad", "b", "c"])
    assert heard.silence == {"bad": why}
    assert heard.replies.keys() == {"a", "b", "c"} and heard.done == 4
    repeated = not (fault.status == 400 or fault.headers.get("Retry-After") == "3600")
    assert Counter(each.passage for each in server.requests)["bad"] == 1 + repeated


@pytest.mark.parametrize(
    "raw",
    [
        "<html>busy</html>",
        '{"choices": [{"message": {"content": "half',
        '{"error": "overloaded"}',
        '{"choices": []}',
        '{"choices": [{"message": null}]}',
        "[]",
        "null",
    ],
)
def test_a_response_that_is_no_completion_is_no_answer(raw: str) -> None:
    with serving(lambda request: Answer(raw=raw)) as server:
        heard = run_conversations(endpoint(server), ["a"])
        assert len(server.requests) == 2
    assert heard.silence == {"a": "no completion"} and not heard.replies


def test_a_server_of_something_else_ends_it() -> None:
    with serving(lambda request: Answer(raw="<html>welcome</html>")) as server:
        told = "5 requests in a row got no answer, .* expected a chat completion, got '<html>welcome</html>'"
        with pytest.raises(ValueError, match=told):
            run_conversations(endpoint(server, concurrency=2, retries=0), [str(i) for i in range(50)])
        assert len(server.requests) <= 6


def test_an_answer_may_come_in_parts_and_its_tokens_as_no_numbers() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]
    usage = {"prompt_tokens": "7", "completion_tokens": 2}
    raw = json.dumps({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}], "usage": usage})
    with serving(lambda request: Answer(raw=raw)) as server:
        assert run_conversations(endpoint(server), ["a"]).replies == {"a": Completion("fine", "stop", None, 2)}


def test_optional_fields_of_a_completion_may_be_missing() -> None:
    raw = '{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}]}'
    with serving(lambda request: Answer(raw=raw)) as server:
        assert run_conversations(endpoint(server), ["a"]).replies == {"a": Completion("", "stop", None, None)}


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "check the key"), (403, "check the key"), (404, "check endpoint.url")]
)
def test_fatal_statuses_end_the_run_at_once(status: int, advice: str) -> None:
    with serving(lambda request: Answer(status=status)) as server:
        with pytest.raises(ValueError, match=advice) as error:
            run_conversations(endpoint(server, key="secret", concurrency=2), [str(i) for i in range(50)])
        assert len(server.requests) <= 2
    assert str(error.value).startswith(f"{server.url}: Error code: {status}")
    assert "secret" not in str(error.value) and "key Bearer ***" in str(error.value)


def test_a_server_that_is_gone_ends_it() -> None:
    def behaviour(request: Request) -> Answer:
        return GOOD if int(request.passage) < 10 else Answer(status=500, headers={"Retry-After": "0.01"})

    with serving(behaviour) as server:
        with pytest.raises(ValueError, match="5 requests in a row got no answer, the last for this reason: status 500"):
            run_conversations(endpoint(server, concurrency=2), [str(i) for i in range(50)])
        assert {int(each.passage) for each in server.requests} <= set(range(10 + 6))


def test_nobody_listens() -> None:
    with serving() as server:
        pass
    with pytest.raises(ValueError, match=re.escape(f"{server.url}: 5 requests in a row got no answer")):
        run_conversations(endpoint(server, retries=0), [str(i) for i in range(50)])


def test_concurrency_limits_simultaneous_requests() -> None:
    def behaviour(request: Request) -> Answer:
        fault = request.number == 0 and int(request.passage) % 7 == 0
        return Answer(status=503, headers={"Retry-After": "0.02"}) if fault else Answer("fine", delay=0.02)

    with serving(behaviour) as server:
        heard = run_conversations(endpoint(server, concurrency=3), [str(i) for i in range(40)])
    assert len(heard.replies) == heard.done == 40
    assert server.most_at_once == 3


def test_retries_pass_the_rate_limiter() -> None:
    with serving(once(Answer(status=429, headers={"Retry-After": "0.01"}))) as server:
        started = time.monotonic()
        heard = run_conversations(
            endpoint(server, concurrency=8, requests_per_minute=1200), [str(i) for i in range(15)]
        )
        taken = time.monotonic() - started
    assert len(heard.replies) == 15
    times = [each.time for each in server.requests]
    assert len(times) == 30 and taken > 29 * 0.05 * 0.98
    for first, last in zip(times, times[10:], strict=False):
        assert last - first > 10 * 0.05 * 0.8, "11 requests in less time than 10 intervals"
