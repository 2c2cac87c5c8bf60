"""The results of all checks as JSON and as Markdown."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from tabulate import tabulate

from nestling.checkpoint.run_folder import git_state
from scripts.gpu.running import Outcome


def write_results(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write results.json and results.md into a folder."""
    found = {"git": git_state(), "checks": [asdict(each) for each in outcomes]}
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text("\n\n".join(sections(outcomes)) + "\n", encoding="utf-8")


def sections(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A heading with the machine, a table of the checks, and a table for each kind of figures."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    described = next((row for row in rows if row["table"] == "machine"), {})
    yield f"## {described.get('device', 'an unknown machine')}"
    state = git_state()
    facts = {**described, "commit": None if state is None else str(state["commit"])[:12]}
    yield ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("table", "device", "gpu"))
    yield table_of(
        [{"check": each.name, "": each.verdict, "seconds": each.seconds, "why": each.note} for each in outcomes]
    )
    of_checks = sorted((row for row in rows if row["table"] != "machine"), key=lambda row: str(row["table"]))
    for name, members in groupby(of_checks, itemgetter("table")):
        yield f"### {name}"
        yield table_of(list(members))


def table_of(rows: Sequence[dict[str, object]]) -> str:
    """A table of rows, which need not have the same columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "table"))
    cells = [[shown(row.get(name)) for name in columns] for row in rows]
    return tabulate(cells, [name.replace("_", " ") for name in columns], tablefmt="github", disable_numparse=True)


def shown(value: object) -> str:
    """Integers with thousands separators, other numbers with three digits that count, nothing for None."""
    if isinstance(value, bool) or value is None:
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
