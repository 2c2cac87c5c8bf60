"""Look for what is wrong with training data, and write a copy without it.

    python scripts/check_data.py --data pairs.jsonl
    python scripts/check_data.py --data pairs.jsonl --eval data/my-set --report report.html
    python scripts/check_data.py --data pairs.jsonl --model Qwen/Qwen3-Embedding-0.6B --document_max_length 256
    python scripts/check_data.py --data pairs.jsonl --eval data/my-set --output cleaned.jsonl

Duplicates and near duplicates, texts of evaluation sets, contradicting labels, short texts, lengths, scripts and
languages. The data themselves are never changed; docs/checking-data.md explains each finding.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import __version__
from nestling.config import CheckConfig, parse_config, require, require_extra, require_model, require_new, run

if TYPE_CHECKING:
    from nestling.data_checks.cleaning import Dropped
    from nestling.data_checks.findings import Finding
    from nestling.data_checks.report import Section
    from nestling.data_checks.rows import SourceRows
    from nestling.data_checks.statistics import StatisticsByKind


def main() -> None:
    config = parse_config(CheckConfig, __doc__)
    check_files(config)

    from nestling.data_checks.checks import check
    from nestling.data_checks.cleaning import clean, write_copy
    from nestling.data_checks.findings import find
    from nestling.data_checks.near import Nearness
    from nestling.data_checks.report import as_text, copy_section, sections
    from nestling.data_checks.rows import open_rows
    from nestling.data_checks.statistics import statistics
    from nestling.data_checks.tokens import TokenCounter
    from nestling.records import load_retrieval_set

    shown = sys.stderr.isatty()
    counter = TokenCounter.from_pretrained(config.model) if config.model else None
    sets = [load_retrieval_set(folder, config.eval_split) for folder in config.eval]
    rows = open_rows(config.data, split=config.split, progress=shown)
    nearness = Nearness(config.threshold, config.shingle)
    checks = check(rows, nearness, sets, min_characters=config.min_characters, progress=shown)
    findings = find(rows, checks, examples=config.examples)
    figures = statistics(
        rows,
        checks,
        counter,
        {"query": config.query_max_length, "document": config.document_max_length},
        sample=config.sample,
    )
    parts = list(sections(findings, figures, config.drop, nearness, copied=config.output is not None))
    copy, dropped = clean(rows, checks, config.drop)
    if config.output is not None:
        parts.append(copy_section(copy, dropped))
    print(f"{rows.summary}\n\n{as_text(parts)}")
    if config.output is not None:
        require(bool(copy.keep_row.any()), f"no row is left to write to {config.output}; see which rule dropped them")
        write_copy(copy, Path(config.output))
        print(f"\n{config.output} holds {int(copy.keep_row.sum()):,} rows; {config.data} is as it was")
    if config.report is not None:
        write_report(Path(config.report), config, rows, findings, figures, dropped, parts)


def check_files(config: CheckConfig) -> None:
    """Refuse what could not be written, or not be read, before the data are read."""
    for flag, path in (("output", config.output), ("report", config.report)):
        require_new(f"--{flag}", path)
    require(config.output is None or config.output.endswith(".jsonl"), "--output: expected a name in .jsonl")
    suffix = None if config.report is None else Path(config.report).suffix
    require(suffix in (None, ".json", ".html"), f"--report {config.report}: expected a name in .json or .html")
    require_extra("checking data", "hygiene", "rensa", "py3langid", "regex")
    if config.model is not None:
        require_model(config.model, f"--model {config.model}: no such directory")


def write_report(
    path: Path,
    config: CheckConfig,
    rows: "SourceRows",
    findings: "list[Finding]",
    figures: "StatisticsByKind",
    dropped: "list[Dropped]",
    parts: "list[Section]",
) -> None:
    from nestling.data_checks.report import as_html
    from nestling.files import replace_text

    if path.suffix == ".html":
        replace_text(path, as_html(f"Training data: {config.data}", str(rows.summary), parts))
        return
    content = {
        "nestling": __version__,
        "config": asdict(config),
        "source": asdict(rows.summary),
        "findings": [asdict(each) for each in findings],
        "statistics": {kind: asdict(each) for kind, each in figures.items()},
        "copy": [asdict(each) for each in dropped] if config.output else None,
    }
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
