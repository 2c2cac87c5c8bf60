"""Output of long tasks."""

import time

import pytest

from nestling.console import working


def test_a_long_task_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with working("hashing", seconds=0.02):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"hashing: 00:00 so far"}
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_short_task_and_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with working("hashing"), working("hashing on rank 1", shown=False, seconds=0.001):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_task_that_fails_ends_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no room"), working("writing", seconds=0.02):
        raise ValueError("no room")
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
