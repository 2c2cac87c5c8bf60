"""Whose judgements those of a folder are, as scripts/make_test_set.py writes them beside the qrels."""

import json
from collections import Counter
from pathlib import Path

from nestling.run_files import reading

JUDGEMENTS = "judgements.jsonl"


def judged_by(folder: str | Path) -> str | None:
    """Who judged and how much, in words; None for a folder that does not say."""
    path = Path(folder) / JUDGEMENTS
    if not path.is_file():
        return None
    with reading(path, "remove it"), path.open(encoding="utf-8") as lines:
        counts = Counter(str(json.loads(line)["by"]) for line in lines)
    return "judged " + ", ".join(f"{count:,} by {name}" for name, count in counts.most_common())
