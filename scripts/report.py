"""Write one self-contained HTML page of runs and results: tables with significance, curves, and example queries.

    python scripts/report.py --output report.html --runs runs/mine --results bm25.json,before.json,after.json
    python scripts/report.py --output compared.html --results before.json,after.json --baseline before
    python scripts/report.py --output curves.html --runs runs/one,runs/other

Results are what scripts/evaluate.py --output wrote; with --details true intervals, scores and queries can be shown. The
last of them is what is compared with the baseline throughout. The first line says what it is worth; with --fail_if
worse the exit status is 3 if that is less.
"""

import sys
from pathlib import Path

from nestling.config import ReportConfig, new_outputs, parse_config, require, run

FAILED = 3


def main() -> None:
    config = parse_config(ReportConfig, __doc__)
    with new_outputs(("--output", config.output)):
        failed = write_report(config)
    sys.exit(FAILED if failed else 0)


def write_report(config: ReportConfig) -> bool:
    """Write the page, and print what stands at its top; whether the verdict is what --fail_if says."""
    require(
        config.config_file is None or Path(config.config_file).is_file(),
        f"config_file {config.config_file}: no such file",
    )

    from nestling.files import replace_text
    from nestling.report.page import render
    from nestling.report.results import read_result
    from nestling.report.runs import read_run_records
    from nestling.report.verdict import judge
    from nestling.retrieval.choice import Choice

    results = [read_result(Path(path)) for path in config.results]
    runs = read_run_records([Path(folder) for folder in config.runs])
    shown = Path(config.config_file) if config.config_file else None
    choice = Choice.read(Path(config.choice)) if config.choice else None
    verdict = judge(results, choice, runs)
    page = render(
        title=config.title or ", ".join(each.name for each in runs or results),
        runs=runs,
        results=results,
        baseline=config.baseline,
        choice=choice,
        verdict=None if verdict is None else str(verdict),
        settings={} if shown is None else {shown.name: shown.read_text(encoding="utf-8")},
    )
    for line in page.summary:
        print(line)
    replace_text(Path(config.output), page.html)
    print(f"{config.output}: {len(page.html) / 1e6:.1f} MB")
    require(verdict is not None or config.fail_if is None, "fail_if needs results of a model and of its base or BM25")
    return verdict is not None and verdict.fails(config.fail_if)


if __name__ == "__main__":
    run(main)
