"""Control characters of data and file names are shown on a terminal and not obeyed."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
from ranks import environment
from tqdm import tqdm

import warm
from nestling.records import load_records
from nestling.terminal import PrintableStream, printable
from sets import write_beir

ROOT = Path(__file__).parents[1]
# Colours, a title of the window, the bell, a line that is overwritten, C1's CSI, and marks that turn the direction.
HOSTILE = "a\x1b[31mb\x1b]0;t\x07c\rd\x9b2Je\u202ef\u2066g\x7f"
SHOWN = r"a\x1b[31mb\x1b]0;t\x07c\rd\x9b2Je\u202ef\u2066g\x7f"
ALLOWED = "\n\t"


def controls(text: str) -> set[str]:
    return {character for character in text if printable(character) != character} - set(ALLOWED)


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / name, *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with warm.Popen(command, env=environment(), **pipes) as process:
        output, errors = process.communicate()
    # Not text=True, which would make line feeds of carriage returns.
    return subprocess.CompletedProcess(command, process.returncode, output.decode(), errors.decode())


def test_printable() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("\ud800\u2028\0") == r"\ud800\u2028\x00"
    plain = "tab\tline\nsoft\u00adhyphen 👩\u200d🚀 می\u200cخواهم"
    assert printable(plain) == plain


def stream() -> tuple[io.StringIO, TextIO]:
    written = io.StringIO()
    return written, cast(TextIO, PrintableStream(written))


def test_what_is_printed() -> None:
    written, out = stream()
    print(HOSTILE, file=out, flush=True)
    assert written.getvalue() == r"ab\x1b]0;t\x07c\rd\x9b2Je\u202ef\u2066g\x7f" + "\n", "colours are left out"


def test_bars_move_and_their_names_do_not() -> None:
    written, out = stream()
    with tqdm(total=1, desc=HOSTILE, file=out, mininterval=0) as bar, tqdm(total=1, file=out, mininterval=0) as other:
        other.update(1)
        bar.update(1)
    text = written.getvalue()
    assert "\r" + SHOWN.replace(r"\x1b[31m", "") in text
    assert controls(text) == {"\r", "\x1b"}
    assert text.count("\x1b") == text.count("\x1b[A") > 0


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "p", f"neg_{HOSTILE}": "n"},
        {HOSTILE: "q", "text": "p"},
        {"messages": [{"role": HOSTILE, "content": "x"}], "positive_messages": []},
    ],
)
def test_messages_of_the_library(tmp_path: Path, row: dict[str, Any]) -> None:
    """They are one line without control characters wherever they are printed."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"x1b\[31m") as caught:
        load_records(tmp_path / "rows.jsonl", cache_dir=tmp_path / "cache")
    assert not controls(str(caught.value)) | ({"\n"} & set(str(caught.value)))


@pytest.fixture
def hostile_rows(tmp_path: Path) -> Path:
    """Data with a hostile name, and hostile columns, queries and documents, which the check shows as examples."""
    rows = [
        {"query": f"how do I list files {HOSTILE}", "positives": [HOSTILE], HOSTILE: "ignored"},
        {"query": f"how do I list files {HOSTILE}", "positives": [HOSTILE], HOSTILE: "ignored"},
        {"query": f"HOW do I list files {HOSTILE}!", "positives": ["ls"]},
    ]
    path = tmp_path / f"{HOSTILE}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_report_of_a_script(hostile_rows: Path) -> None:
    done = run_script("check_data.py", "--data", hostile_rows)
    assert done.returncode == 0, done.stderr
    assert SHOWN.replace(r"\x1b[31m", "") in done.stdout
    assert not controls(done.stdout + done.stderr)


def test_an_error_of_a_script(hostile_rows: Path) -> None:
    hostile_rows.write_text(json.dumps({HOSTILE: "q"}))
    done = run_script("check_data.py", "--data", hostile_rows)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not controls(done.stdout + done.stderr)


@pytest.mark.slow
def test_the_evaluation_of_a_set(tmp_path: Path) -> None:
    folder = tmp_path / f"set {HOSTILE}"
    write_beir(folder, [HOSTILE, "other"], [HOSTILE], {"q0": {"d0": 1}})
    done = run_script("evaluate.py", "--first_stage", "bm25", "--data", folder)
    assert done.returncode == 0, done.stderr
    assert SHOWN.replace(r"\x1b[31m", "") in done.stdout
    assert not controls(done.stdout + done.stderr)
