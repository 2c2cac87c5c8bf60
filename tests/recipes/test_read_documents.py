"""scripts/read_documents.py as it is run: what it writes and says, what it refuses, and a kill while it reads."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("docx")
pytest.importorskip("pypdf")

from document_files import files, write_all
from nestling.mining.pool import open_corpus
from recipes.runs import ROOT, refusal, run_main
from scripts.read_documents import main

read_documents = partial(run_main, main)


def test_a_folder_becomes_a_corpus_that_other_scripts_read(tmp_path: Path, bert: Path) -> None:
    write_all(tmp_path / "documents", files())
    arguments = ("--folder", tmp_path / "documents", "--output", tmp_path / "corpus", "--model", bert)
    done = read_documents(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 files with documents, 10 of them read now" in done.stdout
    assert f"{tmp_path / 'corpus' / 'corpus.jsonl'} holds " in done.stdout
    texts = list(open_corpus(tmp_path / "corpus", False).texts())
    assert any(
        "They build nests of mud & straw" in text and text.startswith("Birds & bees > Swallows") for text in texts
    )
    again = read_documents(*arguments)
    assert "10 files with documents, 0 of them read now" in again.stdout
    other = read_documents(*arguments, "--max_tokens", "64", "--overlap", "4")
    assert "other settings or libraries than before" in other.stdout
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {
        *("corpus.jsonl", "documents.journal.jsonl", "dropped.jsonl")
    }


def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    write_all(tmp_path / "documents", {"a.txt": b"owls"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine", encoding="utf-8")
    folder = f"--folder={tmp_path / 'documents'}"
    refused = partial(refusal, main, folder=tmp_path)
    assert refused(f"--folder={tmp_path / 'nothing'}", "--output=x") == "--folder nothing: no such folder"
    assert refused(folder, f"--output={tmp_path / 'other'}") == "--output other holds other files; choose another name"
    assert "is inside --folder, and would be read" in refused(folder, f"--output={tmp_path / 'documents' / 'corpus'}")
    assert "overlap is 9, expected at most a quarter of max_tokens, 8" in refused(
        folder, f"--output={tmp_path / 'x'}", "--max_tokens=32", "--overlap=9"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_continues_to_the_same_corpus(tmp_path: Path) -> None:
    write_all(
        tmp_path / "documents",
        {f"{number:04d}.txt": f"Swallow {number} builds a nest.\n\n".encode() * 200 for number in range(1000)},
    )
    command = [sys.executable, str(ROOT / "scripts/read_documents.py"), "--folder", str(tmp_path / "documents")]
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    size = (tmp_path / "whole" / "documents.journal.jsonl").stat().st_size
    journal = tmp_path / "killed" / "documents.journal.jsonl"
    for share in (0.1, 0.5, 0.9):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > share * size):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run([*command, "--output", str(tmp_path / "killed")], check=True, capture_output=True, text=True)
    read = int(done.stdout.split(" with documents, ")[1].split()[0])
    assert read < 200
    for name in ("corpus.jsonl", "dropped.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first = json.loads((tmp_path / "whole" / "corpus.jsonl").read_text(encoding="utf-8").partition("\n")[0])
    assert first["metadata"]["path"] == "0000.txt"
