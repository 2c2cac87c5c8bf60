"""What is done, done again, moved aside, removed and refused, with steps that are small commands of the shell."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nestling.pipeline.pipeline import Pipeline
from nestling.pipeline.running import StoppedError
from nestling.pipeline.step import Step
from nestling.pipeline.step_record import StepRecord
from nestling.processes import identify
from nestling.retrieval.choice import Choice


def shell(folder: Path, name: str, text: str, *, reads: list[Path], resumes: bool = False, **settings: object) -> Step:
    """A step whose output, steps/NAME/out, is what the command writes to it."""
    out = folder / "steps" / name / "out"
    return Step(name, name, ("sh", "-c"), (text.format(out=out),), settings, tuple(reads), (out,), resumes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "run" / "steps").mkdir(parents=True)
    return tmp_path / "run"


def chain(folder: Path, *, rate: float = 1.0, middle: str = "wc -c < {source} > {{out}}", **more: bool) -> Pipeline:
    """Three steps: a copy of the data, something that depends on it and a setting, and a copy of that."""
    data, first, second = folder.parent / "data.txt", folder / "steps" / "a" / "out", folder / "steps" / "b" / "out"
    steps = [
        shell(folder, "a", f"cat {data} > {{out}}", reads=[data]),
        shell(folder, "b", middle.format(source=first), reads=[first], rate=rate, **more),
        shell(folder, "c", f"cat {second} > {{out}}", reads=[second]),
    ]
    return Pipeline.open(folder, steps)


def states(pipeline: Pipeline) -> dict[str, str]:
    return {step.name: str(status) for step, status, _ in pipeline.run_steps(pipeline.steps)}


def test_a_second_run_does_nothing(folder: Path) -> None:
    assert states(chain(folder)) == {"a": "new", "b": "new", "c": "new"}
    times = {path: path.stat().st_mtime_ns for path in folder.glob("steps/*/*")}
    assert states(chain(folder)) == {"a": "done", "b": "done", "c": "done"}
    assert {path: path.stat().st_mtime_ns for path in folder.glob("steps/*/*")} == times


def test_the_folder_can_move(folder: Path) -> None:
    states(chain(folder))
    moved = folder.rename(folder.with_name("moved"))
    assert set(states(chain(moved)).values()) == {"done"}


def test_the_place_of_the_script_is_no_change(folder: Path) -> None:
    out, found = folder / "steps" / "a" / "out", []
    for folder_of in ("one/scripts", "two/scripts", "other"):
        script = folder.parent / folder_of / "go.sh"
        script.parent.mkdir(parents=True)
        script.write_text("echo > $1")
        step = Step("a", "a", ("sh", "-e", str(script)), (str(out),), {}, (), (out,))
        found.append(states(Pipeline.open(folder, [step]))["a"])
    assert found == ["new", "done", "changed: it is started by -e other/go.sh, was by -e scripts/go.sh"]


def test_a_setting_repeats_its_step_and_no_other_whose_inputs_stay(folder: Path) -> None:
    states(chain(folder))
    assert states(chain(folder, rate=2.0)) == {"a": "done", "b": "changed: rate is 2.0, was 1.0", "c": "done"}
    assert (folder / "replaced" / "b.1" / "out").read_text() == "4\n", "the old output is kept"
    assert states(chain(folder, rate=3.0))["b"] == "changed: rate is 3.0, was 2.0"
    assert (folder / "replaced" / "b.2" / "out").exists()


def test_of_a_folder_of_documents_links_are_not_followed(folder: Path) -> None:
    """As they are not read: one may lead to a whole disk."""
    documents, elsewhere, out = folder.parent / "documents", folder.parent / "elsewhere", folder / "steps" / "a" / "out"
    for each in (documents, elsewhere):
        each.mkdir()
        (each / "a.txt").write_text("one")
    (documents / "away").symlink_to(elsewhere)
    settings = {"folder": f"{documents}/", "model": str(elsewhere)}
    step = Step("a", "a", ("sh", "-c"), (f"echo > {out}",), settings, (documents,), (out,))
    assert states(Pipeline.open(folder, [step])) == {"a": "new"}
    (elsewhere / "a.txt").write_text("two")
    assert states(Pipeline.open(folder, [step])) == {"a": "done"}
    (documents / "a.txt").write_text("two")
    assert states(Pipeline.open(folder, [step])) == {"a": f"changed: {documents} is different"}


def test_changed_data_repeat_dependent_steps(folder: Path) -> None:
    states(chain(folder))
    (folder.parent / "data.txt").write_text("longer data")
    pipeline = chain(folder)
    before = {step.name: str(status) for step, status in pipeline.statuses(pipeline.steps)}
    changed = f"changed: {folder.parent / 'data.txt'} is different"
    assert before == {"a": changed, "b": "waits: for a", "c": "waits: for b"}
    after = {"a": changed, "b": "changed: RUN/steps/a/out is different", "c": "changed: RUN/steps/b/out is different"}
    assert states(chain(folder)) == after
    assert (folder / "steps" / "c" / "out").read_text() == "11\n"


def test_an_output_that_is_gone_is_made_again(folder: Path) -> None:
    states(chain(folder))
    out = folder / "steps" / "b" / "out"
    out.unlink()
    assert states(chain(folder)) == {"a": "done", "b": f"changed: {out} is gone", "c": "done"}


def test_a_failure_names_command_and_lines_and_can_be_mended(folder: Path) -> None:
    fails = "echo half > {{out}}; echo no luck; exit 3"
    with pytest.raises(ValueError, match="b: it ended with status 3") as error:
        states(chain(folder, middle=fails))
    assert "no luck" in str(error.value) and str(error.value).splitlines()[-1].startswith("  sh -c 'echo half")
    pipeline = chain(folder, middle="test ! -e {{out}} && echo whole > {{out}}")
    assert states(pipeline) == {"a": "done", "b": "unfinished: starts again", "c": "new"}
    assert (folder / "steps" / "c" / "out").read_text() == "whole\n"
    assert not (folder / "replaced").exists()


def test_a_step_that_leaves_no_output_has_failed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"b ended successfully but did not write .*/b/out; its command was:"):
        states(chain(folder, middle="true"))


def test_a_step_that_resumes_keeps_its_files(folder: Path) -> None:
    counts = "echo x >> {{out}}.parts; test $(wc -l < {{out}}.parts) = 2 && cp {{out}}.parts {{out}}"
    with pytest.raises(ValueError, match="status 1"):
        states(chain(folder, middle=counts, resumes=True))
    assert states(chain(folder, middle=counts, resumes=True))["b"] == "unfinished: resumes"
    with pytest.raises(ValueError, match="status 1"):
        states(chain(folder, middle=counts, resumes=True, rate=2.0))
    assert (folder / "replaced" / "b.1" / "out.parts").read_text() == "x\nx\n"
    with pytest.raises(ValueError, match="status 1"):
        states(chain(folder, middle=counts, resumes=True, rate=3.0))
    assert (folder / "replaced" / "b.2" / "out.parts").read_text() == "x\n", "a training half-way is moved aside too"


def test_a_step_that_updates_keeps_its_outputs_when_its_inputs_change(folder: Path) -> None:
    counts = "echo x >> {{out}}.parts; cp {{out}}.parts {{out}}"

    def updated(**settings: float) -> Pipeline:
        pipeline = chain(folder, middle=counts, **settings)
        return replace(pipeline, steps=[replace(each, updates=each.name == "b") for each in pipeline.steps])

    states(updated())
    assert states(updated(rate=2.0))["b"].startswith("changed")
    assert (folder / "steps" / "b" / "out").read_text() == "x\nx\n"
    assert not (folder / "replaced" / "b.1").exists()


def test_outputs_beside_the_steps_move_with_them_and_are_never_overwritten(folder: Path) -> None:
    data, out = folder.parent / "data.txt", folder / "model"

    def copy() -> Pipeline:
        step = Step("copy", "copy", ("cp", "-r"), (str(data), str(out)), {}, (data,), (out,))
        return Pipeline.open(folder, [step])

    out.write_text("somebody's")
    with pytest.raises(
        ValueError, match=r"copy: .*/model exists already, and no earlier run of the step wrote it; move it away"
    ):
        states(copy())
    assert out.read_text() == "somebody's"
    out.unlink()
    states(copy())
    data.write_text("new")
    states(copy())
    assert out.read_text() == "new"
    assert (folder / "replaced" / "copy.1" / "model").read_text() == "data"


def test_files_of_own_commands_are_moved_aside(folder: Path) -> None:
    out = folder / "steps" / "a" / "out"
    out.parent.mkdir()
    out.write_text("by hand")
    assert states(chain(folder))["a"] == "new"
    assert out.read_text() == "data"
    assert (folder / "replaced" / "a.1" / "out").read_text() == "by hand"


def test_a_step_that_still_runs_is_not_started_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.pipeline.pipeline.ENDING_SECONDS", 0.1)
    with pytest.raises(ValueError, match="status 1"):
        states(chain(folder, middle="exit 1"))
    path = folder / "steps" / "b" / "step.json"
    record_of = StepRecord.read(path)
    assert record_of is not None and record_of.process is not None
    StepRecord(record_of.inputs, done=False, process=identify(os.getpid())).write(path)
    with pytest.raises(ValueError, match=rf"b: process {os.getpid()} of an earlier run is still running; end it first"):
        states(chain(folder))


def test_steps_that_are_left_out_have_to_be_done(folder: Path) -> None:
    pipeline = chain(folder)
    with pytest.raises(ValueError, match=r"a has not been run in .*; run it before"):
        pipeline.require_done(pipeline.steps[:2])
    states(pipeline)
    pipeline.require_done(pipeline.steps[:2])


def test_a_model_that_dev_does_not_choose_is_not_handed_over(folder: Path) -> None:
    data, out, choice = folder.parent / "data.txt", folder / "reranker", folder.parent / "choice.json"
    found = Choice("dev", 3, {}, None, 20, None, [0.5, 0.6], [1.0, 0.01], "reranker", 0.1)
    copy = Step(
        "copy", "copy", ("cp", "-r"), (str(data), str(out)), {}, (data, choice), (out,), choice=choice, kind="reranker"
    )

    def state() -> str:
        pipeline = Pipeline.open(folder, [copy])
        (listed,) = [str(status) for _, status in pipeline.statuses(pipeline.steps)]
        (state,) = states(pipeline).values()
        assert state == listed
        pipeline.require_done(pipeline.steps)
        return state

    choice.write_text(found.to_json())
    assert state() == "new" and out.read_text() == "data"
    choice.write_text(replace(found, reranker=None, rerank_weight=0.0).to_json())
    assert state() == f"left out: the dev set does not speak for the reranker: {choice}"
    assert not out.exists() and (folder / "replaced" / "copy.1" / "reranker").read_text() == "data"
    assert state().startswith("left out")
    choice.write_text(found.to_json())
    assert state() == "new" and out.read_text() == "data"


def test_a_stop_in_the_middle_leaves_a_step_unfinished(folder: Path) -> None:
    with pytest.raises(StoppedError):
        states(chain(folder, middle="kill -TERM $PPID; exec sleep 60"))
    assert states(chain(folder)) == {"a": "done", "b": "unfinished: starts again", "c": "new"}
