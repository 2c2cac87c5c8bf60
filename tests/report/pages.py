"""Shared by tests of reports: result files and run folders as the scripts write them, and a parser of pages."""

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

VOID = {"meta", "br", "hr"}


class ParsedPage(HTMLParser):
    """A parsed page: its visible text, its tags, and everything that a browser would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.pieces: list[str] = []
        self.feed(page)
        assert self.open == [], "elements that do not close"
        self.loads += re.findall(r"url\(|@import|https?:", page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "background") or name.startswith("on"):
                self.loads.append(f"{name}={value}")
            if name in ("href", "xlink:href") and not (value or "").startswith("#"):
                self.loads.append(f"{name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.pieces.append(data)


def document(name: str, score: float | None, relevance: float, text: str | None = None) -> dict[str, Any]:
    return {"id": name, "text": text or f"text of {name}", "score": score, "relevance": relevance}


def detail_line(query: str, value: float, text: str | None = None, **key: Any) -> dict[str, Any]:
    """A line of a details file; all metrics of the query have the same value."""
    return {
        "data": "set/test",
        "dim": 8,
        "embedding_precision": "float32",
        "order": None,
        **key,
        "query_id": query,
        "query": text or f"asking {query}",
        "metrics": {"nDCG@10": value, "MRR@10": value},
        "judged": [{**document(f"r-{query}", 0.9, 1.0), "rank": 12.0}],
        "first": [document(f"d{i}-{query}", 0.5 - i / 10, 0.0) for i in range(3)],
        "others": [0.1, 0.2],
    }


def write_result(
    path: Path, lines: Sequence[Mapping[str, Any]], *, model: str | None = "m", details: bool = True
) -> Path:
    """Write a result file whose table rows are the means of lines of details, and the details file beside it."""
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        rows.setdefault(tuple(line[name] for name in ("data", "dim", "embedding_precision", "order")), []).append(line)
    results = [
        {
            **dict(zip(("data", "dim", "embedding_precision", "order"), key, strict=True)),
            "queries": len(of_row),
            "documents": 9,
            "metrics": {
                name: float(np.mean([line["metrics"][name] for line in of_row])) for name in of_row[0]["metrics"]
            },
        }
        for key, of_row in rows.items()
    ]
    path.write_text(json.dumps({"nestling": "0", "config": {"model": model}, "results": results}), encoding="utf-8")
    if details:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path.with_suffix(".details.jsonl").write_text(text, encoding="utf-8")
    return path


def write_run(folder: Path, *, steps: int = 6, more: str = "") -> Path:
    """Write a run folder with two evaluations."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "base", "save_total_limit": 3, "note": more}))
    launch = {"started": "2026-01-01T00:00:00+00:00", "world_size": 1, "versions": {"torch": "2"}, "git": None}
    (folder / "run.json").write_text(json.dumps({"launches": [launch]}))
    counts = {"examples": 8, "tokens": 100, "truncated": 3, "skipped_steps": 0}
    lines: list[dict[str, Any]] = [{"step": 0, "eval": {"dev": {"8": {"nDCG@10": 0.25}, "4": {"nDCG@10": 0.2}}}}]
    for step in range(1, steps + 1):
        figures = {"loss": 2 / step, "learning_rate": 1e-4, "grad_norm": None, "tokens_per_second": 2e4}
        lines.append({"step": step, **figures, **counts})
    lines.append({"step": steps, "eval": {"dev": {"8": {"nDCG@10": 0.5}, "4": {"nDCG@10": 0.3}}}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"rows_read": 1234, "rows_kept": 1230, "positives": 1240, "negatives": 0, "ignored": [["extra", 4]]}
    drop = {"reason": "empty query", "count": 4, "example": "a.jsonl:7"}
    read = [{"name": "pairs", "role": "train", "summary": {**summary, "drops": [drop]}}]
    (folder / "read.json").write_text(json.dumps(read))
    return folder
