"""Prompts as settings: their forms, and what is refused at the start of each script that takes them."""

from pathlib import Path

import pytest

from nestling.config import EmbedConfig, EvaluateConfig, ExportConfig, MineConfig, TrainData, parse_config
from nestling.config.prompts import prompt_before_text
from nestling.records.load import load_records
from nestling.training.data import check_embed_data

EMBED = ["--model", "m", "--output_dir", "o", "--train", "a.jsonl"]
EVALUATE = ["--model", "m", "--data", "d"]
MINE = ["--data", "a.jsonl", "--retrievers", "m", "--output", "o"]
EXPORT = ["--adapter", "a", "--base", "m", "--output", "o"]


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("query: ", "query: "),
        ("query: {text}", "query: "),
        ("query: {}", "query: "),
        ("", ""),
        ("{text}", ""),
        ("Instruct: {instruction}\nQuery: {text}", "Instruct: {instruction}\nQuery: "),
        ("{ }", "{ }"),
    ],
)
def test_forms_of_prompts(given: str, prompt: str) -> None:
    assert prompt_before_text("query_prompt", given) == prompt


@pytest.mark.parametrize(("cls", "flags"), [(EmbedConfig, EMBED), (EvaluateConfig, EVALUATE), (MineConfig, MINE)])
def test_flags_keep_prompts_as_they_are(cls: type, flags: list[str], tmp_path: Path) -> None:
    """White space at the end, empty texts and colons, on the command line and in a file."""
    config = parse_config(cls, None, [*flags, "--query_prompt", "query: ", "--document_prompt", ""])
    assert (config.query_prompt, config.document_prompt) == ("query: ", "")
    file = tmp_path / "settings.yaml"
    file.write_text('query_prompt: ""\ndocument_prompt: "passage: {text}"\n')
    config = parse_config(cls, None, [*flags, "--config", str(file)])
    assert (config.query_prompt, config.document_prompt) == ("", "passage: {text}")
    config = parse_config(cls, None, flags)
    assert (config.query_prompt, config.document_prompt) == (None, None)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            {"query_prompt": "{} Answer:"},
            "query_prompt is '{} Answer:': servers put a prompt before a text and nothing behind it; expected {} at "
            "the end, and {instruction} for the query's instruction",
        ),
        ({"query_prompt": "{}{}"}, "query_prompt is '{}{}': servers put a prompt before a text and nothing behind it"),
        (
            {"query_prompt": "ask {query}"},
            "query_prompt is 'ask {query}', and {query} is unknown there; expected {text}",
        ),
        ({"document_prompt": "{instruction}: "}, "document_prompt is '{instruction}: ', and {instruction} is unknown"),
        ({"query_prompt": r"Query:\n"}, "with a backslash and an n; for a line break write $'…\\n…' in bash"),
        (
            {"query_prompt": "", "instruction": "Find it"},
            "query_prompt is '', without a place for the instruction 'Find it'; write {instruction} where it is to",
        ),
    ],
)
def test_what_is_no_prompt(prompts: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = [f"--{name}={value}" for name, value in prompts.items()]
    scripts = [(EmbedConfig, EMBED), (EvaluateConfig, EVALUATE), (MineConfig, MINE), (ExportConfig, EXPORT)]
    for cls, flags in scripts:
        with pytest.raises(SystemExit):
            parse_config(cls, None, [*flags, *more])
        assert message in capsys.readouterr().err


def test_instructions_of_datasets_and_dev_sets(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "dev"):
        rows = f'[{{"path": "a.jsonl", "instruction": "Find {name}"}}]'
        flags = [*EMBED, f"--{name}", rows, "--query_prompt", "query: "]
        with pytest.raises(SystemExit):
            parse_config(EmbedConfig, None, flags)
        assert f"without a place for the instruction 'Find {name}'" in capsys.readouterr().err


def test_what_needs_a_model_or_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(EvaluateConfig, None, ["--first_stage", "bm25", "--data", "d", "--query_prompt", ""])
    assert "query_prompt and document_prompt need a --model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config(ExportConfig, None, ["--checkpoint", "c", "--output", "o", "--document_prompt", ""])
    assert "prompts and lengths go with --adapter" in capsys.readouterr().err


def test_instructions_of_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"query": "a", "positives": ["b"], "instruction": "Find it"}\n{"query": "c", "positives": ["d"]}\n'
    )
    table, data = load_records(str(rows)), TrainData(str(rows))
    config = EmbedConfig(model="m", output_dir="o", train=[data], query_prompt="query: ")
    with pytest.raises(
        ValueError, match=r"rows.jsonl: 1 rows have an instruction of their own, and query_prompt is 'q"
    ):
        check_embed_data(config, data, table)
    check_embed_data(
        EmbedConfig(model="m", output_dir="o", train=[data], query_prompt="{instruction} {text}"), data, table
    )
