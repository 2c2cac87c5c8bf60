"""Digests say whether content changed, and read a file once."""

import os
from pathlib import Path

import pytest

from nestling.pipeline.digests import Digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("one")
    (tmp_path / "data" / "inner" / "b.txt").write_text("two")
    return tmp_path / "data"


def test_a_new_time_or_a_copy_is_no_change(folder: Path, tmp_path: Path) -> None:
    first = Digests(tmp_path / "digests.json").digest_of(folder)
    os.utime(folder / "a.txt", (0, 0))
    assert Digests(tmp_path / "digests.json").digest_of(folder) == first
    (folder / ".hidden").write_text("no part of it")
    assert Digests(tmp_path / "digests.json").digest_of(folder) == first


def test_content_and_names_are_changes(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests.json")
    found = [digests.digest_of(folder)]
    (folder / "a.txt").write_text("One")
    found.append(digests.digest_of(folder))
    (folder / "a.txt").rename(folder / "c.txt")
    found.append(digests.digest_of(folder))
    (folder / "inner" / "b.txt").unlink()
    found.append(digests.digest_of(folder))
    assert len(set(found)) == 4
    assert digests.digest_of(tmp_path / "nowhere") is None


def test_content_of_the_same_size_and_time_is_a_change(folder: Path, tmp_path: Path) -> None:
    """As `cp -p` writes it, into the old file."""
    digests, found = Digests(tmp_path / "digests.json"), set()
    for content in ("one", "two"):
        (folder / "a.txt").write_text(content)
        os.utime(folder / "a.txt", (0, 0))
        found.add(digests.digest_of(folder))
    assert len(found) == 2


def test_of_broken_and_cyclic_links_only_the_name_counts(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests.json")
    (folder / "away").symlink_to("nowhere")
    first = digests.digest_of(folder)
    assert digests.digest_of(folder) == first
    (folder / "round").symlink_to(".")
    os.mkfifo(folder / "pipe")
    assert digests.digest_of(folder) not in (None, first)


def test_links_that_lead_in_several_circles_come_to_an_end(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests.json")
    for name in ("current", "latest", "inner/above"):
        (folder / name).symlink_to(folder)
    first = digests.digest_of(folder)
    assert digests.digest_of(folder) == first
    (folder / "latest").unlink()
    assert digests.digest_of(folder) != first


def test_what_links_lead_to_counts_only_where_they_are_followed(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.txt").write_text("three")
    (folder / "away").symlink_to(elsewhere)
    (folder / "d.txt").symlink_to(elsewhere / "c.txt")
    followed, by_name = digests.digest_of(folder), digests.digest_of(folder, links=False)
    (elsewhere / "c.txt").write_text("four")
    assert digests.digest_of(folder) != followed
    assert digests.digest_of(folder, links=False) == by_name
    (folder / "a.txt").write_text("One")
    assert digests.digest_of(folder, links=False) != by_name


def test_names_of_any_bytes_and_files_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "digests.json")
    before = digests.digest_of(folder)
    latin = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    latin.write_text("one")
    found = {before, digests.digest_of(folder)}
    latin.write_text("two")
    found.add(digests.digest_of(folder))
    digests.save()
    found.add(Digests(tmp_path / "digests.json").digest_of(folder))
    assert len(found) == 3


def test_a_file_that_is_gone_before_it_is_read_counts_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = Digests(tmp_path / "digests.json")
    before = digests.digest_of(folder)
    read = Digests.digest_of_file

    def vanishing(self: Digests, path: Path) -> str:
        if path.name == "a.txt":
            path.unlink()
        return read(self, path)

    monkeypatch.setattr(Digests, "digest_of_file", vanishing)
    assert digests.digest_of(folder) not in (None, before)


def test_an_unchanged_file_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests(tmp_path / "digests.json")
    first = digests.digest_of(folder)
    digests.save()

    def refuse(*_: object) -> None:
        raise AssertionError("it is read again")

    again = Digests(tmp_path / "digests.json")
    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert again.digest_of(folder) == first
    os.utime(folder / "a.txt", (0, 0))
    with pytest.raises(AssertionError, match="it is read again"):
        again.digest_of(folder)
