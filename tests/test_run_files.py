"""Files of a run that are damaged: the error names the file and says what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.checkpoint import open_run_folder
from nestling.export.card import base_license
from nestling.pipeline.digests import read_cached_digests
from nestling.pipeline.step_record import StepRecord
from nestling.run_files import checkpoints_measured, evaluation_at, read_data, read_data_lines, read_metrics

LINE = '{"step": 1, "eval": {"dev": {"64": {"nDCG@10": 0.5}}}}\n'


@pytest.mark.parametrize("content", ['{"a', "[1]", '"text"', "3", '[{"unknown": 1}]', '{"a": 1}'])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("data.json", lambda path: read_data_lines(path.parent)),
        ("read.json", read_data),
        ("digests.json", read_cached_digests),
        ("step.json", StepRecord.read),
    ],
)
def test_files_that_hold_something_else(
    name: str, read: Callable[[Path], object], content: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}: not what was written there .*; remove it"):
        read(tmp_path / name)


def test_an_incomplete_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINE + LINE[:20])
    assert len(read_metrics(path)) == 1
    assert evaluation_at(path, 1) == {"dev": {64: {"nDCG@10": 0.5}}}


@pytest.mark.parametrize("line", ['{"ste', "[1]", "3", "{}", "\udcff"])
def test_other_lines_of_metrics_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{LINE}{line}\n{LINE}", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a line of metrics; remove the line"):
        evaluation_at(path, 1)


@pytest.mark.parametrize("evaluation", ["3", '{"dev": 3}', '{"dev": {"x": {}}}'])
def test_evaluations_that_are_none(evaluation: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 7, "eval": {evaluation}}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: not what was written there .*; remove the line of step 7"):
        evaluation_at(path, 7)


@pytest.mark.parametrize("content", ['{"laun', "[]", "{}", '{"launches": [3]}'])
def test_launches_that_are_none(content: str, tmp_path: Path) -> None:
    run, config = tmp_path / "run", {"seed": 1}
    with open_run_folder(run, config, resume=False):
        pass
    (run / "run.json").write_text(content)
    with (
        pytest.raises(ValueError, match=r"run.json: not what was written there .*; remove it, and resume"),
        open_run_folder(run, config, resume=True),
    ):
        pass
    (run / "run.json").unlink()
    with open_run_folder(run, config, resume=True) as folder:
        assert folder.resumed


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"---\nlicense: \xff\n---\n"])
def test_a_card_that_is_not_readable_names_no_licence(card: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert base_license(str(tmp_path)) is None


def test_checkpoints_that_a_run_measured(tmp_path: Path) -> None:
    final = tmp_path / "final"
    assert checkpoints_measured(final, "dev") == 0, "no run"
    lines = [LINE.replace("1", str(step), 1) for step in (0, 5, 10)] + [LINE.replace("dev", "other")]
    (tmp_path / "metrics.jsonl").write_text("".join([*lines, '{"step": 11, "loss": 1.0}\n']))
    assert checkpoints_measured(final, "dev") == 2, "step 0 is before training"
    assert checkpoints_measured(final, "elsewhere") == 0
    assert checkpoints_measured(tmp_path / "checkpoints", "dev") == 0, "final/ alone is what dev has chosen"
