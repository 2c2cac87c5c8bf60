"""Settings from strangers: aliases of aliases, deep nesting, and classes to import."""

import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from nestling.config import (
    EmbedConfig,
    MakeQueriesConfig,
    PipelineConfig,
    TrainData,
    parse_config,
    read_run,
    read_section,
)
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


def refusal_of_config(path: Path, capsys: pytest.CaptureFixture[str], config: type = MakeQueriesConfig) -> str:
    return refusal_of_flags(["--config", str(path)], capsys, config)


def refusal_of_flags(flags: list[str], capsys: pytest.CaptureFixture[str], config: type) -> str:
    with pytest.raises(SystemExit):
        parse_config(config, None, flags)
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
        'endpoint: {body: {x: "class_path: stranger.Own"}}',
        """endpoint: {body: {x: '{"\\x63lass_path": stranger.Own}'}}""",
    ],
)
def test_no_class_is_imported(
    tmp_path: Path, settings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stranger(tmp_path, monkeypatch)
    path = write(tmp_path, f"model: m\ndata: d\noutput: o.jsonl\n{settings}\n")
    expected = "the key class_path names a class to import, and settings import none; remove it"
    assert f"error: {path}: {expected}" in refusal_of_config(path, capsys)
    with pytest.raises(ValueError, match=f"queries: {expected}"):
        read_section("queries", MakeQueriesConfig, {"model": "m", "endpoint": {"body": {"x": {"class_path": "a.B"}}}})
    with pytest.raises(SystemExit):
        parse_config(PipelineConfig, None, ["--config", str(path)])
    assert "stranger" not in sys.modules


def write_stranger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with a class that settings could name."""
    (folder / "stranger.py").write_text("class Own:\n    def __init__(self, r=0): self.r = r\n")
    monkeypatch.syspath_prepend(folder)


SPEC = '{"class_path": "stranger.Own", "init_args": {"r": 3}}'
EMBED = ["--model=m", "--output_dir=o", "--query_max_length=8", "--document_max_length=8"]


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (MakeQueriesConfig, ["--endpoint", SPEC]),
        (MakeQueriesConfig, [f"--endpoint={SPEC}"]),
        (MakeQueriesConfig, ["--endpoint.body", f'{{"x": {SPEC}}}']),
        (MakeQueriesConfig, ["--endpoint.body", '{"x": "class_path: stranger.Own"}']),
        (MakeQueriesConfig, ["--endpoint.body.x", SPEC]),
        (MakeQueriesConfig, ["--endpoint.body", '{"\\x63lass_path": "stranger.Own"}']),
        (MakeQueriesConfig, ["--endpoint.body", "{? class_path : stranger.Own}"]),
        (MakeQueriesConfig, ["--endpoint.class_path", "stranger.Own"]),
        (MakeQueriesConfig, ["--class_path=stranger.Own"]),
        (MakeQueriesConfig, ["--instruction", SPEC]),
        (MakeQueriesConfig, ["--config", SPEC]),
        (EmbedConfig, [*EMBED, "--train", f"[{SPEC}]"]),
        (EmbedConfig, [*EMBED, "--train", SPEC]),
        (EmbedConfig, [*EMBED, "--train+", SPEC]),
        (EmbedConfig, [*EMBED, "--train=a", "--train.class_path=stranger.Own"]),
        (EmbedConfig, [*EMBED, "--train=a", "--loss", SPEC]),
        (EmbedConfig, [*EMBED, "--train=a", "--matryoshka_dims", SPEC]),
    ],
)
def test_no_class_of_a_flag_is_imported(
    tmp_path: Path,
    config: type,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_stranger(tmp_path, monkeypatch)
    assert refusal_of_flags(flags, capsys, config) == (
        "error: the command line: the key class_path names a class to import, and settings import none; remove it\n"
    )
    assert "stranger" not in sys.modules


def test_a_text_in_place_of_a_dataset_is_no_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stranger(tmp_path, monkeypatch)
    expected = "error: train: found the text 'stranger.Own', expected an item's keys with their values; --help lists"
    assert expected in refusal_of_flags([*EMBED, "--train=[stranger.Own]"], capsys, EmbedConfig)
    assert expected in refusal_of_flags([*EMBED, "--train+=stranger.Own"], capsys, EmbedConfig)
    path = write(tmp_path, "model: m\noutput_dir: o\ntrain: [stranger.Own]\n")
    assert parse_config(EmbedConfig, "", ["--config", str(path)]).train == [TrainData("stranger.Own")]
    settings = {"model": "m", "output_dir": "o", "train": ["stranger.Own"]}
    assert read_section("embed", EmbedConfig, settings).train == [TrainData("stranger.Own")]
    assert "stranger" not in sys.modules


def test_texts_with_colons_and_names_like_class_path_are_read() -> None:
    flags = [
        *EMBED,
        "--train",
        "my_class_path.jsonl",
        "--dev",
        '[{"path": "d", "instruction": "2024-13-45: a? b: {c"}]',
    ]
    config = parse_config(EmbedConfig, None, flags)
    assert [each.path for each in config.train] == ["my_class_path.jsonl"]
    assert config.dev[0].instruction == "2024-13-45: a? b: {c"


def test_an_alias_bomb_of_a_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    bomb = BOMB[BOMB.index("    a:") :].replace("    ", "")
    said = refusal_of_flags(["--endpoint.body", bomb], capsys, MakeQueriesConfig)
    assert said == "error: the command line: more than 100,000 values, repeated aliases among them\n"
