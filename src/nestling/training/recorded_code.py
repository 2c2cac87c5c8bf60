"""The code that a run's model came with, in remote_code.json of its folder: a resumed run has the same."""

import json
from pathlib import Path

from nestling.files import replace_text
from nestling.models.json_files import parse_object
from nestling.models.remote_code import code_hashes, is_trusted

FILE = "remote_code.json"


def record_code(run: Path, model: str) -> None:
    """Write the name and sha256 of each file of the model's code, if it is run."""
    hashes = code_hashes(model) if is_trusted(model) else {}
    if hashes and not (run / FILE).exists():
        replace_text(run / FILE, json.dumps(hashes, indent=1) + "\n")


def require_same_code(run: Path, model: str) -> None:
    """Raise ValueError unless the code of a model is what a run began with."""
    if not (run / FILE).exists() or not is_trusted(model):
        return
    then, now = parse_object(run / FILE), code_hashes(model)
    changed = sorted(name for name in {**then, **now} if then.get(name) != now.get(name))
    if changed:
        raise ValueError(
            f"{model}: its code is not what {run} began with: {', '.join(changed)} changed since; put back the files "
            f"whose sha256 {run / FILE} lists, or start a new run"
        )
