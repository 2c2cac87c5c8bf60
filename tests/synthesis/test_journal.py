import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.synthesis.conversation import ChatRequest, Completion, ConversationResult, NoAnswer
from nestling.synthesis.journal import open_journal

SETTINGS = {"model": "m", "endpoint": {"body": {}}, "languages": {"document": 1.0}}
FIRST, SECOND = Completion("one\n\u2028é\ud800", "stop", 10, 2), Completion("", None, None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with open_journal(path, SETTINGS) as journal:
        journal.add(7, FIRST)
        journal.add(8, SECOND)
        journal.add(7, SECOND)
    return path


def test_completions_are_read_back(path: Path) -> None:
    with open_journal(path, SETTINGS) as journal:
        assert (
            list(journal.completions_of(7)) == [FIRST, SECOND]
            and list(journal.completions_of(8)) == [SECOND]
            and not list(journal.completions_of(9))
        )
        assert (journal.completions, journal.tokens_in, journal.tokens_out, journal.without_usage) == (3, 10, 2, 2)


def test_an_incomplete_last_line_is_removed(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"document": 9, "text": "\xc3')
    with open_journal(path, SETTINGS) as journal:
        assert journal.completions == 3
        journal.add(9, FIRST)
    assert path.read_bytes().startswith(whole)
    with open_journal(path, SETTINGS) as journal:
        assert list(journal.completions_of(9)) == [FIRST]


def test_an_incomplete_first_line_is_replaced(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])
    with open_journal(path, SETTINGS) as journal:
        assert journal.completions == 0
    assert json.loads(path.read_text()) == {"settings": SETTINGS}


def test_other_settings_are_named(path: Path) -> None:
    other = {**SETTINGS, "model": "n", "endpoint": {"body": {"top_p": 0.9}}}
    with pytest.raises(ValueError, match="given with other settings") as error, open_journal(path, other):
        pass
    lines = str(error.value).splitlines()
    assert "  model: m then, n now" in lines
    assert "  endpoint.body.top_p: (absent) then, 0.9 now" in lines
    assert lines[-1] == "use those settings, or choose another --output"


def test_settings_are_fixed_by_the_first_completion(tmp_path: Path) -> None:
    """A run that failed before any answer, for a mistyped model say, does not bind the next one."""
    path = tmp_path / "journal.jsonl"
    for model in ("mistyped", "m"):
        with open_journal(path, {**SETTINGS, "model": model}) as journal:
            pass
    assert json.loads(path.read_text()) == {"settings": SETTINGS} and journal.completions == 0


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda text: "no journal\n", 1),
        (lambda text: text.replace('"settings"', '"setting"'), 1),
        (lambda text: text.replace('"document": 8', '"documents": 8'), 3),
        (lambda text: text.replace("one", 'one"'), 2),
    ],
)
def test_a_file_that_is_not_a_journal_is_not_changed(path: Path, spoil: Callable[[str], str], line: int) -> None:
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(f"{path}:{line}: not a line of a journal")):
        open_journal(path, SETTINGS).__enter__()
    assert path.read_bytes() == before


def test_two_processes_do_not_share_one(path: Path) -> None:
    code = "import sys; from pathlib import Path; from nestling.synthesis.journal import open_journal\n"
    code += f"with open_journal(Path({str(path)!r}), {SETTINGS!r}): pass"
    with open_journal(path, SETTINGS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ValueError: {path} is being written by process {os.getpid()} on " in done.stderr


def test_a_conversation_is_answered_from_the_journal_first(path: Path) -> None:
    received = []

    def conversation():  # type: ignore[no-untyped-def]
        for seed in range(4):
            received.append((yield ChatRequest([], seed)))
        return ConversationResult("q", None, None, ())

    with open_journal(path, SETTINGS) as journal:
        conversation = journal.record(7, conversation())
        assert next(conversation).seed == 2, "two answers are there"
        third = Completion("three", "stop", 1, 1)
        assert conversation.send(third).seed == 3
        with pytest.raises(StopIteration):
            conversation.throw(NoAnswer("timeout"))
        assert received == [FIRST, SECOND, third]
        assert journal.unanswered == {7: "timeout"}
        assert list(journal.completions_of(7)) == received
