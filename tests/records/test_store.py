"""The cache on a full disk: an error of one line with advice, no partial files, earlier files unchanged."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nestling.records import Record, load_records, load_retrieval_set

FREE = 2 << 20  # bytes; as `small_disk` has them
TEXT = "text " * 200


def write_rows(file: Path, size: int) -> Path:
    """About `size` bytes of text, in rows whose queries count up."""
    rows = ({"query": f"q{i}", "positives": [f"{TEXT}{i}"]} for i in range(size // len(TEXT)))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_beir(folder: Path, size: int) -> Path:
    """A retrieval set whose corpus has about `size` bytes of text."""
    (folder / "qrels").mkdir(parents=True)
    documents = ({"_id": f"d{i}", "text": f"{TEXT}{i}"} for i in range(size // len(TEXT)))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "query"}\n')
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    return folder


def content(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes, like a quota but without a separate file system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused(cache: Path, load: Callable[[], object], reason: int) -> None:
    """`load` fails in one line for `reason` (an errno), and the cache is unchanged."""
    before = content(cache)
    with pytest.raises(OSError, match=f"cannot write the cache folder {cache}: {os.strerror(reason)}; free") as caught:
        load()
    assert caught.value.errno == reason
    assert str(caught.value).endswith("set NESTLING_CACHE or cache_dir to a folder that can be written")
    assert "\n" not in str(caught.value)
    assert content(cache) == before


# The rows are written twice, the second time without repeats: 3/4 of the disk is full in the second pass only.
@pytest.mark.parametrize("size", [2 * FREE, 3 * FREE // 4], ids=["first pass", "second pass"])
def test_rows_that_do_not_fit_on_the_disk(size: int, small_disk: Path, tmp_path: Path) -> None:
    cache, rows = small_disk / "cache", write_rows(tmp_path / "rows.jsonl", 20_000)
    assert len(load_records(rows, cache_dir=cache)) == 20
    large = write_rows(tmp_path / "large.jsonl", size)
    assert_refused(cache, lambda: load_records(large, cache_dir=cache), errno.ENOSPC)
    assert load_records(rows, cache_dir=cache)[19] == Record("q19", (f"{TEXT}19",))


def test_a_corpus_that_does_not_fit_on_the_disk(small_disk: Path, tmp_path: Path) -> None:
    cache = small_disk / "cache"
    load_retrieval_set(write_beir(tmp_path / "small", 20_000), "dev", cache_dir=cache)
    large = write_beir(tmp_path / "large", 2 * FREE)
    assert_refused(cache, lambda: load_retrieval_set(large, "dev", cache_dir=cache), errno.ENOSPC)


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    cache, rows = tmp_path / "cache", write_rows(tmp_path / "rows.jsonl", 20_000)
    load_records(rows, cache_dir=cache)
    large, corpus = write_rows(tmp_path / "large.jsonl", FREE), write_beir(tmp_path / "beir", FREE)
    with largest_file(FREE // 2):
        assert_refused(cache, lambda: load_records(large, cache_dir=cache), errno.EFBIG)
        assert_refused(cache, lambda: load_retrieval_set(corpus, "dev", cache_dir=cache), errno.EFBIG)
    assert load_records(rows, cache_dir=cache)[19] == Record("q19", (f"{TEXT}19",))
    assert len(load_records(large, cache_dir=cache)) == FREE // len(TEXT), "with more room it is read after all"


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_sync(reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()

    def full(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync", full)
    rows = write_rows(tmp_path / "rows.jsonl", 20_000)
    assert_refused(tmp_path / "cache", lambda: load_records(rows, cache_dir=tmp_path / "cache"), reason)
