"""A folder as a corpus: what is read again, what a kill changes, near duplicates, and what is told."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("docx")
pytest.importorskip("pypdf")

from document_files import LIMIT, files, write_all, zip_file
from nestling.data_checks.near_duplicates import NearDuplicateCriterion
from nestling.documents import files as reading
from nestling.documents import summary
from nestling.documents.chunks import Chunker
from nestling.documents.corpus import Counts, write_corpus
from nestling.documents.files import list_folder, read_files
from nestling.documents.journal import compact, open_journal
from nestling.documents.tokens import Words

CRITERION = NearDuplicateCriterion(0.8, 2)
SETTINGS = {"max_tokens": 64}
COPIES = {
    "copies/a.txt": b"Swallows build nests of mud and straw below the roofs of barns and of old houses.",
    "copies/b.zip": zip_file(
        {"c.md": "Swallows build nests of mud and straw below the roofs of barns and of old stables."}
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "documents"
    write_all(path, {**files(), **COPIES, "no.pdf": b"%PDF", "picture.png": b"", ".hidden/a.txt": b"owls"})
    (tmp_path / "output").mkdir()
    return path


def run(folder: Path, output: Path, settings: dict[str, Any] = SETTINGS) -> tuple[int, Counts]:
    """Read a folder; returns how many files were read, and the counts."""
    listing = list_folder(folder)
    with open_journal(output / "journal.jsonl", settings) as journal:
        read = read_files(listing, journal, Chunker(Words(), 64, 8), LIMIT, lambda: None)
        return read, write_corpus(output, listing, journal, CRITERION)


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]


def test_only_what_has_changed_is_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, anew = tmp_path / "output", tmp_path / "anew"
    assert run(folder, output)[0] == 13
    assert run(folder, output)[0] == 0
    before = rows(output)
    (folder / "latin.txt").write_text("Wrens sing.", encoding="utf-8")
    (folder / "table.csv").unlink()
    (folder / "aaa.txt").write_text("Storks clatter.", encoding="utf-8")
    seen: list[str] = []
    read_document = reading.read_document
    monkeypatch.setattr(
        reading, "read_document", lambda member, *rest: seen.append(member.path) or read_document(member, *rest)
    )
    assert run(folder, output)[0] == 2
    assert seen == ["aaa.txt", "latin.txt"]
    anew.mkdir()
    run(folder, anew)
    for name in ("corpus.jsonl", "dropped.jsonl"):
        assert (output / name).read_bytes() == (anew / name).read_bytes()
    changed = {"aaa.txt", "latin.txt", "table.csv"}
    kept = [row for row in before if row["metadata"]["path"] not in changed]
    assert [row for row in rows(output) if row["metadata"]["path"] not in changed] == kept


def test_a_kill_at_any_moment_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "output", tmp_path / "killed"
    run(folder, whole)
    journal = (whole / "journal.jsonl").read_bytes()
    for share in range(5):
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        (output / "journal.jsonl").write_bytes(journal[: len(journal) * share // 5 + share])
        read, _ = run(folder, output)
        assert (read == 13) == (share == 0)
        for name in ("corpus.jsonl", "dropped.jsonl", "journal.jsonl"):
            assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_other_settings_begin_anew_and_another_file_is_no_journal(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(folder, output)
    assert run(folder, output, {"max_tokens": 32})[0] == 13
    (output / "journal.jsonl").write_text('{"query": "owls"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not a journal of documents; move it away"):
        run(folder, output)


def test_a_compacted_journal_is_as_good(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run(folder, output)
    for number in range(3):
        (folder / "latin.txt").write_text(f"Wrens sing {number} songs.", encoding="utf-8")
        run(folder, output)
    before, size = rows(output), (output / "journal.jsonl").stat().st_size
    with open_journal(output / "journal.jsonl", SETTINGS) as journal:
        compact(output / "journal.jsonl", journal, list_folder(folder).files)
    assert (output / "journal.jsonl").stat().st_size < size
    assert run(folder, output)[0] == 0
    assert rows(output) == before


def test_near_duplicates_name_their_first(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    _, counts = run(folder, output)
    groups = {row["_id"]: row["metadata"]["group"] for row in rows(output) if "group" in row["metadata"]}
    assert groups == {"copies/a.txt#1": "copies/a.txt#1", "copies/b.zip!/c.md#1": "copies/a.txt#1"}
    assert (counts.groups, counts.grouped) == (1, 2)


def test_every_file_is_in_the_corpus_or_told(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    _, counts = run(folder, output)
    told = [json.loads(line) for line in (output / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    listed = {row["metadata"]["path"] for row in rows(output)} | {each["path"] for each in told}
    assert listed == {*files(), "copies/a.txt", "copies/b.zip!/c.md", "no.pdf", "picture.png", ".hidden"}
    assert {each["path"]: each["reason"] for each in told}["no.pdf"] == "cannot be parsed"
    shown = "\n".join(summary.lines(counts))
    assert "encodings of texts: utf-8 8, " in shown and "kind of file that is not read" in shown
    assert "near duplicates: 2 chunks in 1 groups" in shown


@pytest.mark.parametrize("failing", ["_digest", "members"])
def test_a_file_whose_reading_fails_ends_nothing_but_itself(
    failing: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a damaged disk, or of a file server that is gone: such an error names no file."""
    output, true = tmp_path / "output", getattr(reading, failing)

    def broken(*arguments: Any) -> Any:
        if any(str(getattr(each, "name", each)).endswith("birds.md") for each in arguments):
            raise OSError(errno.EIO, "Input/output error")
        return true(*arguments)

    monkeypatch.setattr(reading, failing, broken)
    assert run(folder, output)[0] == 12
    told = [json.loads(line) for line in (output / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    (found,) = [each for each in told if each["path"] == "birds.md"]
    assert (found["reason"], found["detail"]) == ("cannot be read", "Input/output error")
    assert not any(row["metadata"]["path"] == "birds.md" for row in rows(output))
    monkeypatch.setattr(reading, failing, true)
    assert run(folder, output)[0] == 1
    assert any(row["metadata"]["path"] == "birds.md" for row in rows(output))


def test_a_folder_without_text_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no text in any of 1 files; .*dropped.jsonl says why"):
        run(tmp_path / "documents", tmp_path)
    assert json.loads((tmp_path / "dropped.jsonl").read_text(encoding="utf-8"))["reason"] == "empty"
    assert not (tmp_path / "corpus.jsonl").exists()
