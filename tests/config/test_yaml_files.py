"""Settings from strangers: aliases of aliases, deep nesting, and classes to import."""

import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from nestling.config import MakeQueriesConfig, PipelineConfig, parse_config, read_run, read_section
from nestling.config.yaml_files import MAX_DEPTH, MAX_VALUES, read_yaml
from nestling.costs.recipes import read_recipe

BOMB = "\n".join(
    [
        "model: m",
        "data: d",
        "output: o.jsonl",
        "endpoint:",
        "  body:",
        "    a: &a [x, x, x, x, x, x, x, x, x, x]",
        *(f"    {name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in pairwise("abcdefghi")),
    ]
)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def refusal_of_config(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse_config(MakeQueriesConfig, None, ["--config", str(path)])
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100,000 values, repeated aliases among them"),
        ("a: &a [*a]", "the alias a stands inside itself"),
        ("a: &a\n  b: &b {c: *a}", "the alias a stands inside itself"),
        ("model: " + "[" * 20_000 + "]" * 20_000, "nested more than 50 levels deep"),
        ("a: " + "[x, " * 60 + "x" + "]" * 60, "nested more than 50 levels deep"),
        ("a: [" + "x, " * (MAX_VALUES + 1) + "]", "more than 100,000 values"),
        ("a: [", "while parsing a flow node"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: *b", "found undefined alias"),
    ],
    ids=["bomb", "circle", "wider circle", "very deep", "deep", "large", "open", "tag", "undefined"],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, text)
    started = time.process_time()
    assert f"error: {path}: not valid YAML: " in (said := refusal_of_config(path, capsys))
    assert message in said and len(said.splitlines()) == 1
    assert time.process_time() - started < 10
    for read in (read_yaml, lambda path: read_recipe("embed", str(path))):
        with pytest.raises(ValueError, match=message):
            read(path)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_plain_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: &y 2}\nb: {<<: *a, z: *y}\nc: [*a, *a]"
    assert read_yaml(write(tmp_path, text)) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2, "z": 2},
        "c": [{"x": 1, "y": 2}] * 2,
    }
    assert read_yaml(write(tmp_path, "a: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)))


@pytest.mark.parametrize(
    "settings",
    [
        "endpoint: {body: {x: {class_path: stranger.Own, init_args: {r: 3}}}}",
        "endpoint: {body: {class_path: stranger.Own}}",
        "endpoint: {body: {x: [{y: {class_path: stranger.Own}}]}}",
        "endpoint: {class_path: stranger.Own}",
        "instruction: {class_path: stranger.Own}",
        "class_path: stranger.Own",
    ],
)
def test_no_class_is_imported(
    tmp_path: Path, settings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("class Own:\n    def __init__(self, r=0): self.r = r\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, f"model: m\ndata: d\noutput: o.jsonl\n{settings}\n")
    expected = "the key class_path names a class to import, and settings import none; remove it"
    assert f"error: {path}: {expected}" in refusal_of_config(path, capsys)
    with pytest.raises(ValueError, match=f"queries: {expected}"):
        read_section("queries", MakeQueriesConfig, {"model": "m", "endpoint": {"body": {"x": {"class_path": "a.B"}}}})
    with pytest.raises(SystemExit):
        parse_config(PipelineConfig, None, ["--config", str(path)])
    assert "stranger" not in sys.modules
