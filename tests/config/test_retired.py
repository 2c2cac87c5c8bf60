"""Settings that had another name: wherever one stands, the error says what to write now."""

from pathlib import Path

import pytest

from nestling.config import (
    EmbedConfig,
    EvaluateConfig,
    MakeQueriesConfig,
    MineConfig,
    RerankConfig,
    parse_config,
    read_section,
)
from nestling.config.arguments import known_keys
from nestling.config.retired import REMOVED, RENAMED, retired

REQUIRED = ["--model", "m", "--output_dir", "o", "--train", "a.jsonl"]


def error_of(capsys: pytest.CaptureFixture[str], cls: type, *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse_config(cls, "test", list(argv))
    assert exit_info.value.code == 2
    return capsys.readouterr().err.strip().removeprefix("error: ")


@pytest.mark.parametrize(
    ("cls", "flag", "message"),
    [
        (EmbedConfig, "warmup", "unknown key 'warmup'; it is called 'warmup_ratio' now"),
        (EmbedConfig, "dims", "unknown key 'dims'; it is called 'matryoshka_dims' now"),
        (EmbedConfig, "lora.targets", "unknown key 'lora.targets'; it is called 'lora.target_modules' now"),
        (EmbedConfig, "loss.query_query", "unknown key 'loss.query_query'; loss.terms lists the terms that count"),
        (EmbedConfig, "refresh.margin", "unknown key 'refresh.margin'; refresh.max_score_ratio is the rule for scores"),
        (RerankConfig, "yes", "unknown key 'yes'; answers takes both words, as in answers: ['yes', 'no']"),
        (MineConfig, "margin", "unknown key 'margin'; it is called 'absolute_margin' now"),
        (MineConfig, "percent", "unknown key 'percent'; it is called 'max_score_ratio' now"),
        (EvaluateConfig, "compute", "unknown key 'compute'; it is called 'precision' now"),
        (EvaluateConfig, "yes", "unknown key 'yes'; --help lists the keys"),
    ],
)
def test_a_retired_flag(cls: type, flag: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, cls, f"--{flag}=1") == message


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("warmup: 0.1", "unknown key 'warmup'; it is called 'warmup_ratio' now"),
        ("lora: {targets: [q_proj]}", "it is called 'lora.target_modules' now"),
        ("loss: {distillation: 1}", "it is called 'loss.distillation_weight' now"),
        ("loss: {hard_negatives: false}", "num_negatives: 0 draws none"),
        ("refresh: {margin: 0.1}", "refresh.max_score_ratio is the rule for scores"),
        ("refresh: {percent: 0.9}", "it is called 'refresh.max_score_ratio' now"),
        ("wandb: mine", "report_to: [wandb] takes its place"),
    ],
)
def test_a_retired_key_of_a_file(yaml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"{yaml}\n")
    assert message in error_of(capsys, EmbedConfig, *REQUIRED, "--config", str(tmp_path / "run.yaml"))


def test_a_retired_key_of_a_section() -> None:
    given = {"model": "m", "output_dir": "o", "train": [{"path": "a"}]}
    with pytest.raises(ValueError, match=r"^embed: unknown key 'epochs'; it is called 'num_train_epochs' now$"):
        read_section("embed", EmbedConfig, {**given, "epochs": 2})
    with pytest.raises(ValueError, match=r"^embed: unknown key .*targets'; it is called 'lora.target_modules' now$"):
        read_section("embed", EmbedConfig, {**given, "lora": {"targets": []}})
    with pytest.raises(ValueError, match=r"^queries: .*it is called 'endpoint.api_key_env' now$"):
        read_section("queries", MakeQueriesConfig, {"data": "d", "model": "m", "endpoint": {"key_variable": "KEY"}})


@pytest.mark.parametrize(
    ("cls", "message"),
    [(EmbedConfig, "'loss' is a section; give its keys, --loss.temperature for instance")],
)
def test_a_section_is_no_flag(cls: type, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, cls, *REQUIRED, "--loss", "{}") == message


def test_every_retired_name_leads_somewhere() -> None:
    """To a key of a script, and no script has a key of the old name that it would explain away."""
    scripts = [set(known_keys(cls)) for cls in every_config()]
    for old in (*RENAMED, *REMOVED):
        told = [retired(old, known) for known in scripts if old not in known]
        assert any(told), old


def every_config() -> list[type]:
    from nestling import config

    return [each for name, each in vars(config).items() if name.endswith(("Config", "Costs"))]


@pytest.mark.parametrize(("cls", "most"), [(EmbedConfig, 80), (RerankConfig, 54)])
def test_recipes_have_few_flags(cls: type, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all that `--help` lists: -h and --config count too."""
    with pytest.raises(SystemExit):
        parse_config(cls, "test", ["--help"])
    flags = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  -")]
    assert len(flags) == len(set(flags)) <= most
    assert {"--train", "--lora.r", "--loss.temperature"} <= set(flags)
