"""Files that are replaced in one step."""

import errno
from pathlib import Path

import pytest

from nestling.files import replace_text
from nestling.locks import claim


def test_a_file_is_replaced_and_no_other_file_is_left(tmp_path: Path) -> None:
    for text in ("first", "數據\n"):
        replace_text(tmp_path / "settings.yaml", text)
        assert (tmp_path / "settings.yaml").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_a_full_disk_names_the_file_and_keeps_the_older_one(tmp_path: Path, full_device: Path) -> None:
    path = tmp_path / "settings.yaml"
    replace_text(path, "older")
    with claim(path) as partial:
        partial.symlink_to(full_device)
        with pytest.raises(
            OSError, match=r"cannot write .*/settings\.yaml: No space left on device; free space there"
        ) as caught:
            replace_text(path, "newer")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "older"
    assert [each.name for each in tmp_path.iterdir()] == ["settings.yaml"]
