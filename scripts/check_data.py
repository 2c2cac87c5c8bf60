"""Check training data for problems, and write a copy without them.

    python scripts/check_data.py --data pairs.jsonl
    python scripts/check_data.py --data pairs.jsonl --eval data/my-set --report report.html
    python scripts/check_data.py --data pairs.jsonl --model Qwen/Qwen3-Embedding-0.6B --document_max_length 256
    python scripts/check_data.py --data pairs.jsonl --eval data/my-set --output cleaned.jsonl

It reports duplicates and near duplicates, texts of evaluation sets, contradictory labels, short texts, lengths, scripts
and languages. The data are never changed; docs/checking-data.md explains each finding.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import __version__
from nestling.config import CheckConfig, new_outputs, parse_config, require, require_extra, require_model, run

if TYPE_CHECKING:
    from nestling.data_checks.checks import Checks
    from nestling.data_checks.cleaning import DropCount
    from nestling.data_checks.findings import Finding
    from nestling.data_checks.report import Section
    from nestling.data_checks.rows import SourceRows
    from nestling.data_checks.statistics import StatisticsByKind
    from nestling.data_checks.tokens import TokenCounter
    from nestling.records.record import Kind


def main() -> None:
    config = parse_config(CheckConfig, __doc__)
    with new_outputs(("--output", config.output), ("--report", config.report)):
        check_files(config)
        check_data(config)


def check_data(config: CheckConfig) -> None:
    from nestling.data_checks.checks import run_checks
    from nestling.data_checks.cleaning import clean, write_copy
    from nestling.data_checks.findings import find_problems
    from nestling.data_checks.near_duplicates import NearDuplicateCriterion
    from nestling.data_checks.report import as_text, copy_section, sections
    from nestling.data_checks.rows import open_rows
    from nestling.records import load_retrieval_set
    from nestling.records.load import require_splits

    # 1. The checks.
    require_splits(config.data, config.split)
    counter = open_counter(config)
    sets = [load_retrieval_set(folder, split) for folder in config.eval for split in eval_splits(folder, config)]
    rows = open_rows(config.data, split=config.split, columns=config.columns, progress=sys.stderr.isatty())
    criterion = NearDuplicateCriterion(config.threshold, config.shingle)
    checks = run_checks(rows, criterion, sets, min_characters=config.min_characters, progress=sys.stderr.isatty())
    findings = find_problems(rows, checks, examples=config.examples)
    statistics_by_kind = compute_statistics(config, rows, checks, counter)

    # 2. The cleaned copy and the reports.
    copy, dropped = clean(rows, checks, config.drop)
    copied = config.output is not None
    report_sections = list(sections(findings, statistics_by_kind, config.drop, criterion, copied=copied))
    report_sections += [copy_section(copy, dropped)] if copied else []
    print(f"{rows.summary}\n\n{as_text(report_sections)}")
    if config.report is not None:
        write_report(Path(config.report), config, rows, findings, statistics_by_kind, dropped, report_sections)
    if config.output is not None:
        kept = int(copy.keep_row.sum())
        require(
            kept > 0, f"all rows were dropped, so {config.output} is not written; see above which rules dropped them"
        )
        write_copy(copy, Path(config.output))
        print(f"\n{config.output} holds {kept:,} rows; {config.data} is unchanged")


def eval_splits(folder: str, config: CheckConfig) -> list[str]:
    """The splits of an evaluation set in which texts of the data are looked for."""
    from nestling.records.beir import splits_of

    if config.eval_split is not None:
        return [config.eval_split]
    own = config.split if Path(folder).resolve() == Path(config.data).resolve() else "train"
    return [split for split in splits_of(folder) if split != own] or ["test"]


def open_counter(config: CheckConfig) -> "TokenCounter | None":
    """The token counter of the model; None without a model."""
    if not config.model:
        return None
    from nestling.data_checks.tokens import TokenCounter
    from nestling.models.remote_code import trust_code

    if config.trust_remote_code:
        trust_code(config.model)
    return TokenCounter.from_pretrained(config.model)


def compute_statistics(
    config: CheckConfig, rows: "SourceRows", checks: "Checks", counter: "TokenCounter | None"
) -> "StatisticsByKind":
    """Statistics of queries and documents, with the maximum lengths of the configuration."""
    from nestling.data_checks.statistics import statistics

    limits: dict[Kind, int | None] = {"query": config.query_max_length, "document": config.document_max_length}
    return statistics(rows, checks, counter, limits, sample=config.sample)


def check_files(config: CheckConfig) -> None:
    """Raise ValueError for names of outputs and for models that cannot be used, before the data are read."""
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
    statistics_by_kind: "StatisticsByKind",
    dropped: "list[DropCount]",
    report_sections: "list[Section]",
) -> None:
    from nestling.data_checks.report import as_html
    from nestling.files import replace_text

    if path.suffix == ".html":
        replace_text(path, as_html(f"Training data: {config.data}", str(rows.summary), report_sections))
        return
    content = {
        "nestling": __version__,
        "config": asdict(config),
        "source": asdict(rows.summary),
        "findings": [asdict(each) for each in findings],
        "statistics": {kind: asdict(each) for kind, each in statistics_by_kind.items()},
        "copy": [asdict(each) for each in dropped] if config.output else None,
    }
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run(main)
