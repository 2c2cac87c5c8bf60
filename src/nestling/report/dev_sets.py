"""The dev sets of a run as results to compare: before training, at the step that is exported, and by a first stage."""

from dataclasses import replace

from nestling.report.results import Result, read_result
from nestling.report.runs import RunRecord
from nestling.run_files import BM25, DEV, FIRST_STAGE, step_file

BEFORE = "before training"


def dev_results(run: RunRecord) -> list[Result]:
    """The results in the folder dev/ of a run, the last one that of the exported step; empty without both steps.

    Raises:
        ValueError: A file is not what a run writes there.
    """
    step, folder = run.exported_step, run.folder / DEV
    if step is None or not all((folder / step_file(each)).is_file() for each in (0, step)):
        return []
    names = {BM25: "BM25", FIRST_STAGE: "first stage", step_file(0): BEFORE, step_file(step): name_of(run, step)}
    found = (
        replace(read_result(folder / file), name=name) for file, name in names.items() if (folder / file).is_file()
    )
    return list(found)


def name_of(run: RunRecord, step: int) -> str:
    """The exported step, with what flatters its figures: that it was chosen by them."""
    evaluated = [each for each in run.evaluations if each > 0]
    return f"step {step:,}" + (", chosen by these queries" if len(evaluated) > 1 else "")
