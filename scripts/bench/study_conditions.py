"""What the results of a study were made with, so that none of other conditions stands among them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nestling.config import require
from nestling.files import replace_text

FILE = "study.json"


def require_same(folder: Path, conditions: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """Raise ValueError if results in a folder were made otherwise; else keep in it what they are made with.

    Args:
        folder: Of one set; made if it is missing.
        conditions: What all results have in common.
        flags: Of each setting, by its name; others may have been measured before.
    """
    path = folder / FILE
    then = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"conditions": conditions, "flags": {}}
    changed = [
        f"{name} {then['conditions'].get(name)} then, {value} now"
        for name, value in conditions.items()
        if then["conditions"].get(name) != value
    ]
    changed += [
        f"setting {name} {then['flags'][name]!r} then, {given!r} now"
        for name, given in flags.items()
        if then["flags"].get(name, given) != given
    ]
    require(not changed, f"{folder} has results of other conditions ({'; '.join(changed)}); give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"conditions": conditions, "flags": {**then["flags"], **flags}}, indent=1) + "\n")
