"""From raw text to served models: mine, train, merge, mine again, train a reranker, evaluate, export, report.

    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --embedder_model $(python data/minilm.py)
    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --dry_run true
    python scripts/pipeline.py --config configs/pipeline/quickstart.yaml --from_step rerank --rerank.learning_rate 5e-4

Each step is one of the other scripts in a process of its own, whose command is printed before it starts. The same
command goes on where it stopped and repeats only what changed, and what follows from that. docs/pipeline.md explains
the sections.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config import PipelineConfig, parse_config, require, require_extra, require_model, run

if TYPE_CHECKING:
    from nestling.pipeline.step import Step

ROOT = Path(__file__).resolve().parents[1]
DATA_FILES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
SETTINGS = "pipeline.yaml"  # in the run's folder


def main() -> None:
    config = parse_config(PipelineConfig, __doc__)
    check(config)

    from nestling.locks import lock
    from nestling.pipeline.pipeline import Pipeline, choose
    from nestling.pipeline.plan import Plan
    from nestling.pipeline.running import StoppedError

    # 1. The steps, all settings checked by the scripts that they are for.
    plan = Plan(config, Path(os.path.relpath(ROOT)) if Path.cwd() == ROOT else ROOT)
    before, chosen = choose(plan.steps, config.only, config.from_step)
    folder = Path(config.output_dir)
    check_inputs(plan.steps, folder)
    pipeline = Pipeline.open(folder, plan.steps)
    if config.dry_run:
        for step, verdict in pipeline.verdicts(chosen):
            print(f"{step.name}: {verdict}\n$ {step}\n")
        return

    # 2. The run, one at a time in its folder.
    pipeline.require_done(before)
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"):
        write_settings(config, plan.settings)
        try:
            outcomes = pipeline.carry_out(chosen)
        except StoppedError as stopped:
            print(f"stopped by {stopped}; the same command goes on", file=sys.stderr)
            sys.exit(128 + stopped.number)

    # 3. What came of it.
    from nestling.console import table

    rows = [[step.name, verdict.state, round(seconds)] for step, verdict, seconds in outcomes]
    print("\n" + table(["step", "was", "seconds"], rows))
    compare([step.writes[0] for step in chosen if step.section == "evaluate"])


def check(config: PipelineConfig) -> None:
    """Refuse what is not there, before anything starts."""
    if config.check is not None:
        require_extra("check", "hygiene", "rensa", "py3langid", "regex")
    if config.queries is not None and config.queries.get("endpoint"):
        require_extra("queries", "synthesis", "openai", "aiolimiter")
    for key, data in (("dev", config.dev), *(("test", each) for each in config.test)):
        beir = data is None or (Path(data) / "corpus.jsonl").is_file()
        require(beir, f"{key} {data}: expected a folder in the BEIR layout, and it has no corpus.jsonl")
    require(config.corpus is None or Path(config.corpus).exists(), f"corpus {config.corpus}: no such file or folder")
    for key in ("train", "embedder_model", "reranker_model"):
        if getattr(config, key) is not None:
            require_there(key, getattr(config, key))
    folder = Path(config.output_dir)
    require(not folder.is_file(), f"{folder} is a file; give a folder for the pipeline")
    foreign = [each for each in folder.glob("[!.]*") if each.name != "steps"]
    require(
        not foreign or (folder / SETTINGS).exists(),
        f"{folder} has no {SETTINGS}, so there is no pipeline to go on with; choose another folder",
    )


def check_inputs(steps: "list[Step]", folder: Path) -> None:
    """Refuse what sections name and is not there, for a late step too, and what would be different at every start."""
    for step in steps:
        for path in step.reads:
            if folder not in path.parents:
                require_there(step.name, str(path))
            inside = path.resolve() in folder.resolve().parents
            require(not inside, f"{step.name} {path}: output_dir {folder} lies in it; choose a folder outside")


def require_there(key: str, value: str) -> None:
    """Raise ValueError for what is no file, no folder and no id of the hub."""
    if not Path(value).exists():
        message = f"{key} {value}: no such file or directory"
        require_model(value, message)
        require(not value.endswith(DATA_FILES), message)  # which no id of the hub does


def write_settings(config: PipelineConfig, path: Path) -> None:
    """Leave the settings, for --config and the report, without what this start alone was to do."""
    import yaml

    from nestling.files import replace_text

    settings = asdict(replace(config, only=None, from_step=None))
    replace_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def compare(results: list[Path]) -> None:
    """Print evaluations side by side."""
    if results:
        print("", flush=True)
        listed = json.dumps(list(map(str, results)))
        subprocess.run([sys.executable, ROOT / "scripts" / "compare.py", "--results", listed], check=True)


if __name__ == "__main__":
    run(main)
