"""From raw text to served models: mine, train, merge, mine again, train a reranker, evaluate, export, serve, report.

    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --embedder_model $(python data/minilm.py)
    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --dry_run true
    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --from_step rerank --rerank.learning_rate 5e-4

Each step runs another script as a subprocess; its command is printed before. The same command resumes a pipeline that
was stopped, and repeats only the steps whose settings or inputs have changed. The last line says what the models are
worth on test; with --fail_if worse the exit status is 3 if that is less. docs/pipeline.md explains the sections.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import PipelineConfig, parse_config, require, require_extra, require_model, run
from nestling.config.pipeline import EMBEDDER

if TYPE_CHECKING:
    from nestling.pipeline.pipeline import Pipeline, StepStatus
    from nestling.pipeline.plan import Plan
    from nestling.pipeline.step import Step

ROOT = Path(__file__).resolve().parents[1]
DATA_FILES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
FAILED = 3  # what fail_if names
SETTINGS = "pipeline.yaml"  # in the run's folder


def main() -> None:
    config = parse_config(PipelineConfig, __doc__)
    check(config)

    from nestling.pipeline.pipeline import Pipeline, select_steps
    from nestling.pipeline.plan import Plan

    # 1. The steps, with all settings validated by the settings classes of their scripts.
    plan = Plan(config, Path(os.path.relpath(ROOT)) if Path.cwd() == ROOT else ROOT)
    skipped, selected = select_steps(plan.steps, config.only, config.from_step)
    folder = Path(config.output_dir)
    check_inputs(plan.steps, folder)
    pipeline = Pipeline.open(folder, plan.steps)
    if config.dry_run:
        for step, status in pipeline.statuses(selected):
            print(f"{step.name}: {status}\n$ {step}\n")
        return

    # 2. The run.
    pipeline.require_done(skipped)
    results = run_pipeline(pipeline, selected, config, plan.settings)

    # 3. The results.
    from nestling.console import table

    rows = [[step.name, status.state, round(seconds)] for step, status, seconds in results]
    print("\n" + table(["step", "was", "seconds"], rows))
    compare([step.writes[0] for step in selected if step.name.startswith("evaluate-")])
    if plan.choice is not None and any(plan.choice in step.writes for step in selected):
        from nestling.retrieval.choice import Choice

        print("", *Choice.read(plan.choice).lines(), sep="\n")
    if any(step.section == "evaluate" for step in selected):
        judge_results(plan, pipeline, config)


def judge_results(plan: "Plan", pipeline: "Pipeline", config: PipelineConfig) -> None:
    """Print what the models are worth and what they cost in a last line; exits with `FAILED` if `fail_if` says so."""
    from tqdm import tqdm

    from nestling.report.results import read_result
    from nestling.report.runs import read_run_records
    from nestling.report.verdict import judge
    from nestling.retrieval.choice import Choice

    choice = plan.choice if plan.choice is not None and plan.choice.exists() else None
    results = [read_result(path) for path in plan.results if path.exists()]
    runs = read_run_records([path for path in plan.runs if path.exists()])
    verdict = judge(results, None if choice is None else Choice.read(choice), runs)
    if verdict is None:
        require(config.fail_if is None, "fail_if: nothing was measured beside the models; it needs their base or BM25")
        return
    seconds = sum(record.seconds or 0.0 for step in plan.steps if (record := pipeline.record_of(step)) is not None)
    print(f"\n{verdict}; all steps {tqdm.format_interval(seconds)}")
    if verdict.fails(config.fail_if):
        print(f"fail_if {config.fail_if}: the exit status is {FAILED}")
        sys.exit(FAILED)


def run_pipeline(
    pipeline: "Pipeline", steps: "list[Step]", config: PipelineConfig, settings: Path
) -> "list[tuple[Step, StepStatus, float]]":
    """Run steps with a lock on the folder; exits with the status of the signal if one stops it."""
    from nestling.locks import lock
    from nestling.pipeline.running import StoppedError

    (pipeline.folder / "steps").mkdir(parents=True, exist_ok=True)
    with lock(pipeline.folder / ".lock"):
        write_settings(config, settings)
        try:
            return pipeline.run_steps(steps)
        except StoppedError as stopped:
            print(f"stopped by {stopped}; the same command resumes", file=sys.stderr)
            sys.exit(128 + stopped.number)


def check(config: PipelineConfig) -> None:
    """Raise ValueError for missing files and extras, before anything starts."""
    if config.check is not None:
        require_extra("check", "hygiene", "rensa", "py3langid", "regex")
    if config.split is not None:
        require_extra("split", "hygiene", "rensa", "regex")
    if config.documents is not None:
        require_extra("documents", "documents", "pypdf", "docx", "markdown_it", "charset_normalizer", "rensa", "regex")
    if config.queries is not None and config.queries.get("endpoint"):
        require_extra("queries", "synthesis", "openai", "aiolimiter")
    for key, data in (("dev", config.dev), *(("test", each) for each in config.test)):
        beir = data is None or (Path(data) / "corpus.jsonl").is_file()
        require(beir, f"{key} {data}: expected a folder in the BEIR layout, and it has no corpus.jsonl")
    require(config.corpus is None or Path(config.corpus).exists(), f"corpus {config.corpus}: no such file or folder")
    for key in ("train", "embedder_model", "reranker_model"):
        if getattr(config, key) not in (None, EMBEDDER):
            require_there(key, getattr(config, key))
    folder = Path(config.output_dir)
    require(not folder.is_file(), f"{folder} is a file; give a folder for the pipeline")
    foreign = [each for each in folder.glob("[!.]*") if each.name != "steps"]
    require(
        not foreign or (folder / SETTINGS).exists(),
        f"{folder} has no {SETTINGS}, so it is not the folder of a pipeline; choose another one",
    )


def check_inputs(steps: "list[Step]", folder: Path) -> None:
    """Raise ValueError for missing inputs of any step, and for inputs that would change with each run."""
    for step in steps:
        for path in step.reads:
            if folder not in path.parents:
                require_there(step.name, str(path))
            inside = path.resolve() in folder.resolve().parents
            require(not inside, f"{step.name} {path}: output_dir {folder} is inside it; choose a folder outside")


def require_there(key: str, value: str) -> None:
    """Raise ValueError for a value that is neither a file or folder nor a hub id."""
    if not Path(value).exists():
        message = f"{key} {value}: no such file or directory"
        require_model(value, message)
        require(not value.endswith(DATA_FILES), message)  # no hub id ends like this


def write_settings(config: PipelineConfig, path: Path) -> None:
    """Write the settings, for --config and the report, without those that select steps."""
    import yaml

    from nestling.files import replace_text

    settings = asdict(replace(config, only=None, from_step=None, fail_if=None))
    replace_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def compare(results: list[Path]) -> None:
    """Print the evaluations side by side."""
    if results:
        print("", flush=True)
        listed = json.dumps(list(map(str, results)))
        subprocess.run([sys.executable, ROOT / "scripts" / "compare.py", "--results", listed], check=True)


if __name__ == "__main__":
    run(main)
