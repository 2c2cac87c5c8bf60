"""Damaged files and those that mean harm are refused with a reason that is counted, quickly and in little memory."""

import bz2
import contextlib
import gzip
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("docx")
pytest.importorskip("pypdf")

from document_files import LIMIT, files, read, word_file, zip_file
from nestling.documents import documents
from nestling.documents.archives import Member, members
from nestling.documents.folder import walk
from nestling.documents.refusals import Dropped
from scripts.bench.documents import pdf_file


def found(name: str, data: bytes, limit: int = LIMIT) -> dict[str, str]:
    """Path of each document of a file -> its content, or the reason why there is none."""
    listed = members(name, io.BytesIO(data), limit)
    return {each.path: each.data.decode() if isinstance(each, Member) else each.reason for each in listed}


def tar_file(mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name in ("a.md", "../out.md", "/etc/hosts.md", "deep/b.md", ".git/c.md", "a.md"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"birds"))
        for name, kind in (("link.md", tarfile.SYMTYPE), ("device.md", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".tar", "w"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")]
)
def test_members_of_a_tar_stay_inside_it(suffix: str, mode: str) -> None:
    of_one = found("x" + suffix, tar_file(mode))
    assert {path.removeprefix(f"x{suffix}!/"): said for path, said in of_one.items()} == {
        "a.md": "name twice in its archive",  # the second one; the dictionary keeps the last
        "../out.md": "name leads out of its archive",
        "/etc/hosts.md": "name leads out of its archive",
        "deep/b.md": "birds",
        ".git/c.md": "hidden",
        "link.md": "symbolic link",
        "device.md": "no regular file",
    }


def test_archives_in_archives_are_read_so_deep_and_no_deeper() -> None:
    inner = zip_file({"c.md": "birds"})
    for _ in range(3):
        inner = zip_file({"z.zip": inner})
    assert found("z.zip", inner) == {"z.zip!/z.zip!/z.zip!/z.zip": "archive too deep in archives"}
    assert (
        found("z.zip", zip_file({"y.tar": tar_file("w"), "x.md.gz": gzip.compress(b"owls")}))["z.zip!/x.md.gz!/x.md"]
        == "owls"
    )


def test_bombs_stop_at_what_an_archive_may_unpack_to() -> None:
    limit = 1 << 16
    zeros = bytes(8 * limit)
    assert found("a.md.gz", gzip.compress(zeros), limit) == {"a.md.gz!/a.md": "too large"}
    assert found("a.md.bz2", bz2.compress(zeros), limit) == {"a.md.bz2!/a.md": "too large"}
    many = found("a.zip", zip_file({f"{number}.md": bytes(limit) for number in range(40)}), limit)
    assert many["a.zip"] == "archive unpacks to too much" and len(many) == 17
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as archive:
        info = tarfile.TarInfo("zeros.bin")
        info.size = 40 * limit
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    assert found("a.tgz", bomb.getvalue(), limit)["a.tgz"] == "archive unpacks to too much"


def test_damaged_and_encrypted_archives_are_refused() -> None:
    whole = zip_file({"a.md": "birds" * 100, "b.md": "owls"})
    assert found("a.zip", b"PK no zip") == {"a.zip": "damaged archive"}
    assert found("a.tgz", tar_file()[:60])["a.tgz"] == "damaged archive"
    damaged = bytearray(whole)
    damaged[40] ^= 255
    assert found("a.zip", bytes(damaged))["a.zip"] == "damaged archive"
    locked = bytearray(zip_file({"a.md": "birds"}))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + at] |= 1
    assert found("a.zip", bytes(locked)) == {"a.zip!/a.md": "encrypted"}


def test_links_and_what_is_no_file_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text("birds", encoding="utf-8")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "b.md").symlink_to("/etc/passwd")
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / os.fsdecode(b"\xff.md")).write_text("owls", encoding="utf-8")
    seen = [each if isinstance(each, Dropped) else each.relative_to(tmp_path) for each in walk(tmp_path)]
    assert seen == [
        Dropped(".git", "hidden"),
        Dropped("b.md", "symbolic link"),
        Dropped("pipe.md", "no regular file"),
        Path("sub/a.md"),
        Dropped("sub/loop", "symbolic link"),
        Path(os.fsdecode(b"\xff.md")),
    ]


def locked_pdf() -> bytes:
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=io.BytesIO(pdf_file([["Swallows build."]])))
    writer.encrypt("secret", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def swollen_word_file() -> bytes:
    with zipfile.ZipFile(io.BytesIO(word_file())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return zip_file({**parts, "word/media/image.bin": bytes(20 * LIMIT)})


REFUSED = {
    "empty.txt": (b" \n", "empty"),
    "picture.txt": (b"\x89PNG\0\0", "no text"),
    "signs.txt": (b"--- *** ---", "no text in it"),
    "locked.pdf": (locked_pdf(), "encrypted"),
    "no.pdf": (b"%PDF-1.4 and nothing else", "cannot be parsed"),
    "scanned.pdf": (pdf_file([[], []]), "no text in it"),
    "no.docx": (b"\xd0\xcf\x11\xe0 of Word 97", "cannot be parsed"),
    "other.docx": (zip_file({"a.md": "birds"}), "cannot be parsed"),
    "swollen.docx": (swollen_word_file(), "too large"),
    "sixteen.txt": (b"\xff\xfea", "encoding unknown"),
    "picture.png": (b"", "kind of file that is not read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_told(name: str) -> None:
    data, reason = REFUSED[name]
    reading = read(name, data)
    assert (reading.rows, reading.dropped[-1].reason) == ([], reason)


def test_depth_and_length_cost_no_more_than_their_size() -> None:
    begun = time.process_time()
    deep = read("a.html", "<div><p>" * 20_000 + "birds" + "</div>" * 20_000)
    assert [row["text"] for row in deep.rows] == ["birds"]
    assert read("a.py", "(" * 20_000).rows == []  # no words either
    assert len(read("b.py", "x = " + "-" * 20_000 + "1").rows) == 1
    assert read("a.jsonl", "[" * 20_000).dropped[0].reason == "line that is no JSON"
    assert len(read("a.md", "> " * 10_000 + "birds").rows) == 1
    assert read("a.csv", 'bird\nwren\n"' + "x" * 200_000).dropped[0].reason == "rest of a table that cannot be parsed"
    assert len(read("a.txt", "x" * 900_000).rows) > 0
    assert time.process_time() - begun < 20


def test_a_document_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    monkeypatch.setattr(documents, "SECONDS", 0.1)
    monkeypatch.setattr(documents, "extract", endless)
    assert read("a.txt", "birds").dropped[0].reason == "takes too long"


def test_damage_anywhere_is_told_and_never_raised() -> None:
    for name, data in files().items():
        for step in range(1, 8):
            damaged = bytearray(data[: len(data) * step // 8])
            damaged[len(damaged) // 2] ^= 0x55
            reading = read(name, bytes(damaged))
            assert reading.rows or reading.dropped
