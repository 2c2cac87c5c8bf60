"""Errors of writing as the libraries raise them, under a limit of the kernel, become one that says what to do."""

import errno
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from nestling.disk_errors import WriteError, find_write_error, named, write_error
from nestling.distributed.ranks import picklable
from nestling.locks import claim
from nestling.mining.array_cache import ArrayCache
from nestling.records.arrow_files import write_batches
from nestling.records.store import CacheError

TOO_LARGE = "File too large; raise the limit on the size of files (ulimit -f), or choose a place on another disk"
LARGE = torch.zeros(10_000)


@pytest.fixture
def limit() -> Iterator[None]:
    """Files of at most 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_by_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(LARGE, file)


def save_by_arrow(path: Path) -> None:
    table = pa.table({"a": list(range(10_000))})
    with write_batches(path, table.schema) as writer:
        writer.write_table(table)


def save_by_tokenizers(path: Path) -> None:
    Tokenizer(models.WordLevel({f"word {i}": i for i in range(1000)}, unk_token="word 0")).save(str(path))


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_text("text" * 10_000),
        lambda path: os.truncate(path, 10_000) if path.touch() is None else None,
        lambda path: save_file({"a": LARGE}, path),
        save_by_torch,
        save_by_arrow,
        save_by_tokenizers,
    ],
    ids=["text", "truncate", "safetensors", "torch", "arrow", "tokenizers"],
)
def test_each_library_is_understood(save: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught, named(tmp_path / "file"):
        save(tmp_path / "file")
    assert str(caught.value) == f"cannot write {tmp_path}/file: {TOO_LARGE}"
    assert caught.value.errno == errno.EFBIG


@pytest.mark.usefixtures("limit")
def test_a_large_array_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=rf"^cannot write the cache folder {tmp_path}: File too large; free space"):
        ArrayCache(tmp_path).write("key", np.zeros(100_000, dtype=np.float16))
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_written_as_numpy_does(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    for i, array in enumerate((np.arange(6).reshape(2, 3), np.zeros((0, 4), np.float16), np.ones((3, 2)).T)):
        cache.write(str(i), array)
        found = cache.open(str(i))
        assert found is not None
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_only_writing_raises_is_found_behind_other_errors(number: int) -> None:
    def fail(kind: type[Exception], cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except OSError:
                raise kind("could not be written")  # noqa: B904
        except kind as error:
            return error

    found = find_write_error(fail(RuntimeError, OSError(number, os.strerror(number), "some.file")))
    assert str(found).startswith(f"cannot write some.file: {os.strerror(number)}; ")
    assert find_write_error(RuntimeError(f"I/O error: no (os error {number})"), "it") is not None
    assert find_write_error(OSError(errno.ENOENT, "missing", "it")) is None
    assert find_write_error(RuntimeError("(os error 2)")) is None


def test_an_error_that_was_dealt_with_is_not_found() -> None:
    with pytest.raises(ValueError, match="another") as caught:  # noqa: PT012
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise ValueError("another") from None
    assert find_write_error(caught.value) is None


def test_other_ranks_get_the_same_words() -> None:
    error = pickle.loads(pickle.dumps(picklable(CacheError(errno.ENOSPC, "cannot write the cache folder c"))))
    assert isinstance(error, WriteError)
    assert (str(error), error.errno) == ("cannot write the cache folder c", errno.ENOSPC)


def test_the_inner_name_stays_and_other_errors_get_one(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"^cannot write inner: "), named(tmp_path):
        raise write_error("inner", errno.ENOSPC)
    with pytest.raises(OSError, match="in the way") as caught, named(tmp_path):
        raise OSError(errno.EIO, "in the way")
    assert caught.value.filename == str(tmp_path)
    assert find_write_error(caught.value) is None


def test_a_place_that_cannot_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    expected = rf"^cannot write {tmp_path}/out: Permission denied; choose a folder that can be written"
    with pytest.raises(WriteError, match=expected), claim(tmp_path / "out"):
        pass
