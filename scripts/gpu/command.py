"""Run everything that has to be known about a GPU, in minutes: whether it computes right, then how fast.

    scripts/gpu_check --output runs/gpu-check
    scripts/gpu_check --output runs/gpu-check --wheels wheels --minutes 8

A line for each check says PASS, FAIL, SKIP (this machine cannot run it) or NOT RUN (no time was left), and why. The
exit status is 1 if any failed. The folder --output gets results.md, with tables for docs/results.md, results.json, and
what each check printed. Without a GPU it runs what it can on the CPU, in small shapes, which
proves the checks, not a GPU. No network is used. docs/gpu.md has more.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import invalidate_caches
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.gpu.plan import CHECKS, MACHINE, Check
from scripts.gpu.running import LIBRARIES, Outcome, Runner
from scripts.gpu.wheels import how_to_collect, install_wheels, missing_packages


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        with TemporaryDirectory(prefix="gpu-check-") as work:
            return check_all(options, Path(work))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, required=True, help="folder of the results; must not exist")
    made.add_argument("--wheels", type=Path, help="folder with wheels of packages that this machine lacks")
    made.add_argument("--minutes", type=float, default=8.0, help="for all checks together")
    made.add_argument(
        "--only", nargs="+", metavar="CHECK", choices=[each.name for each in CHECKS], help="run these checks alone"
    )
    return made


def check_all(options: argparse.Namespace, work: Path) -> int:
    """Run the checks and write the results; the exit status.

    Raises:
        ValueError: The output exists, or packages are missing.
    """
    ends = time.monotonic() + 60 * options.minutes
    if options.output.exists():
        raise ValueError(f"--output {options.output} exists; name a new folder")
    provide_packages(options.wheels, work / "packages")
    (options.output / "logs").mkdir(parents=True)

    from scripts.gpu.results import write_results

    runner = Runner(options.output.resolve(), work, ends)
    outcomes = [machine(runner)]
    say(outcomes[0])
    if outcomes[0].verdict == "PASS":
        outcomes += runner.run_all(chosen(options.only), say)
    write_results(options.output, outcomes)
    failed = sum(each.verdict == "FAIL" for each in outcomes)
    print(f"{failed} of {len(outcomes)} checks failed; {options.output / 'results.md'} has the figures", flush=True)
    return int(failed > 0)


def provide_packages(wheels: Path | None, target: Path) -> None:
    """Make the missing packages importable, here and in processes that are started.

    Raises:
        ValueError: Some are still missing.
    """
    missing = missing_packages()
    if missing:
        print(f"missing here: {', '.join(missing)}", flush=True)
    if missing and wheels is not None:
        install_wheels(wheels, target)
        sys.path.append(str(target))
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], str(target)])
        invalidate_caches()
        missing = missing_packages()
    if missing:
        raise ValueError(
            f"{', '.join(missing)} cannot be imported; where there is a network run\n"
            f"    {how_to_collect(missing, 'wheels')}\nbring the folder here, and give it with --wheels"
        )


def machine(runner: Runner) -> Outcome:
    """The first check, which tells whether there is a GPU and how processes can be started."""
    from multiprocessing import get_context

    from nestling.gpu import set_environment

    set_environment()
    # Trainers that are compared take all GPUs that they see.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Asks the driver whether there is a GPU in a way that leaves a process able to fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    get_context("forkserver").set_forkserver_preload(list(LIBRARIES))
    outcome = runner.run(MACHINE)
    if outcome.verdict == "FAIL":  # a library may have started CUDA when it was imported, and then a fork has none
        print(outcome, flush=True)
        runner.fork = False
        outcome = runner.run(MACHINE)
    runner.gpu = any(row.get("gpu") for row in outcome.rows)
    return outcome


def chosen(only: Sequence[str] | None) -> list[Check]:
    """The checks to run after the first, with those that they need."""
    names = {each.name for each in CHECKS if only is None or each.name in only or each.stage == "prepare"}
    names |= {needed for each in CHECKS if each.name in names for needed in each.needs}
    return [each for each in CHECKS if each.name in names and each is not MACHINE]


def say(outcome: Outcome) -> None:
    print(outcome, flush=True)
