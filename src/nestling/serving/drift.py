"""Comparison of what servers gave with what scripts/evaluate.py measured of the same model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.config import require
from nestling.console import table
from nestling.retrieval.result_files import ResultRow

METRIC = "nDCG@10"
# Data set, dimension, embedding precision and order.
Key = tuple[str, int | None, str | None, str | None]


def read_expected(paths: Sequence[str]) -> dict[Key, float]:
    """nDCG@10 of each row of files of scripts/evaluate.py. Raises ValueError if one is none."""
    return {key: value for path in paths for key, value in read_file(Path(path)).items()}


def read_file(path: Path) -> dict[Key, float]:
    require(path.is_file(), f"--expected {path}: no such file; expected one of scripts/evaluate.py --output")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        return {key_of(row): float(row["metrics"][METRIC]) for row in rows}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"--expected {path}: no file of scripts/evaluate.py --output") from None


def key_of(row: Mapping[str, Any]) -> Key:
    return row["data"], row["dim"], row["embedding_precision"], row.get("order")


def drift_table(rows: Sequence[ResultRow], expected: Mapping[Key, float], tolerance: float) -> tuple[str, bool]:
    """A table of expected and served nDCG@10 with a last line that says whether they agree, and whether they do not.

    Raises:
        ValueError: No row was expected.
    """
    compared = [(row, expected[key]) for row in rows if (key := key_of(row.key)) in expected]
    require(
        bool(compared),
        f"--expected has none of what was measured here ({', '.join(sorted({row.data for row in rows}))}); expected a "
        "file of scripts/evaluate.py of the same sets, dimensions and precisions",
    )
    differences = [row.metrics[METRIC] - before for row, before in compared]
    beyond = [abs(each) > tolerance for each in differences]
    last = (
        f"drift: {sum(beyond)} of {len(compared)} differ by more than {tolerance:g}; scripts/serve_check.py says why"
        if any(beyond)
        else f"served as expected: {len(compared)} of {len(compared)} within {tolerance:g}"
    )
    cells = [
        [row.data, row.dim, row.order or row.embedding_precision, before, row.metrics[METRIC], difference]
        for (row, before), difference in zip(compared, differences, strict=True)
    ]
    titles = ["data", "dim", "measured", f"{METRIC} expected", "served", "difference"]
    return f"{table(titles, cells, digits=4)}\n{last}", any(beyond)
