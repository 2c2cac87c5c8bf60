import math
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from nestling.config import (
    CheckConfig,
    CostsConfig,
    EmbedConfig,
    EndpointConfig,
    LaunchCosts,
    LoraConfig,
    MakeQueriesConfig,
    MergeConfig,
    MineConfig,
    RefreshConfig,
    RerankConfig,
    RerankLossConfig,
    StageCosts,
    TrainData,
    TrainingConfig,
    parse_config,
    require_dims,
)

REQUIRED = ["--model", "m", "--output_dir", "o", "--train", "a.jsonl"]


def parse(*argv: str) -> EmbedConfig:
    return parse_config(EmbedConfig, "test", list(argv))


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.strip()


def test_flags_and_comma_lists() -> None:
    config = parse(
        "--model", "m", "--output_dir=o", "--train=a.jsonl,b", "--matryoshka_dims", "256,128,64", "--lora.r", "8"
    )
    assert config.train == [TrainData("a.jsonl"), TrainData("b")]
    assert config.matryoshka_dims == [256, 128, 64]
    assert config.lora == LoraConfig(r=8)


def test_columns_are_named_in_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    named = {"query": "the title", "positive": "body", "negatives": "a=b"}
    for flags in (
        ["--columns", "query=the title,positive=body,negatives=a=b"],
        ["--columns=query=the title,positive=body,negatives=a=b"],
        ["--columns", '{query: the title, positive: body, negatives: "a=b"}'],
    ):
        assert parse_config(CheckConfig, "test", ["--data", "d", *flags]).columns == named
    with pytest.raises(SystemExit):
        parse_config(CheckConfig, "test", ["--data", "d", "--columns", "title,body"])
    assert "columns" in capsys.readouterr().err
    assert parse("--model=m", "--output_dir=o", "--train=[{path: a, columns: {query: b}}]").train[0].columns == {
        "query": "b"
    }


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: m\noutput_dir: o\nlearning_rate: 1e-5\ntrain:\n- path: a\n  weight: 0.5\nloss: {temperature: .01}\n"
    )
    config = parse("--config", str(file), "--learning_rate", "2e-5")
    assert (config.learning_rate, config.loss.temperature, config.train[0].weight) == (2e-5, 0.01, 0.5)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("lora: {rr: 1}", "unknown key 'rr'; did you mean 'r'?"),
        ("temperatur: 1", "unknown key 'temperatur'; did you mean 'loss.temperature'?"),
        ("qqqq: 1", "unknown key 'qqqq'; --help lists the keys"),
        ("num_train_epochs: null", "num_train_epochs is 'None', expected a number"),
        ("loss: {temperature: null}", "loss.temperature is 'None', expected a number"),
    ],
)
def test_a_wrong_key_of_a_file_is_named(
    yaml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(f"model: m\noutput_dir: o\ntrain: [{{path: a}}]\n{yaml}\n")
    assert error_of(capsys, "--config", str(tmp_path / "run.yaml")) == f"error: {message}"


def test_an_unknown_key_of_a_dataset_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("model: m\noutput_dir: o\ntrain:\n- path: a\n  wieght: 2\n")
    message = error_of(capsys, "--config", str(tmp_path / "run.yaml"))
    assert message == "error: unknown key 'wieght'; did you mean 'weight'?"


def test_an_unknown_flag_and_an_abbreviation_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'batch_size'?" in error_of(capsys, *REQUIRED, "--batch_siz", "3")
    assert "did you mean 'lora.r'?" in error_of(capsys, *REQUIRED, "--lora.rr", "3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch_size", "1"], "batch_size is 1; in-batch negatives need at least 2 queries"),
        (["--batch_size", "x"], "batch_size is 'x', expected a whole number"),
        (["--matryoshka_dims", "64,64"], "matryoshka_dims: 64 is given 2 times; name each dimension once"),
        (["--matryoshka_dims", "64,0"], "matryoshka_dims: 0 is not a dimension; expected whole numbers above 0"),
        (
            ["--matryoshka_dims", "64", "--matryoshka_weights", "1,2"],
            "matryoshka_weights has 2 values and matryoshka_dims 1; expected as many",
        ),
        (["--early_stopping_patience", "2"], "early_stopping_patience needs a dev set; give one with --dev FOLDER"),
        (["--loss.temperature", "0"], "loss.temperature is 0, expected a finite number above 0"),
        (["--learning_rate", "-1"], "learning_rate is -1, expected a finite number above 0"),
        (
            ["--tuning", "fulll"],
            "tuning is 'fulll', expected lora, qlora or full; did you mean full?",
        ),
        (["--optim", "adamw_8bit"], "did you mean adamw_bnb_8bit?"),
        (["--optim", "adamw_torch"], "did you mean adamw_torch_fused?"),
        (["--optim", "sgd"], "optim is 'sgd', expected adamw_torch_fused, adamw_bnb_8bit, "),
        (
            ["--optim", "adamw_bnb_8bit"],
            "optim: adamw_bnb_8bit saves memory where all weights are trained; with tuning: lora use adamw_torch_fused",
        ),
        (
            ["--tuning", "full", "--lora.r", "4", "--lora.target_modules", "query"],
            "lora.r, lora.target_modules: of adapters, and tuning: full trains all weights without; leave this out, or",
        ),
        (["--adam_beta2", "1"], "adam_beta2 is 1.0, expected 0 <= adam_beta2 < 1"),
    ],
)
def test_contradictions_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = error_of(capsys, *REQUIRED, *argv)
    assert found.startswith("error: ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("num_train_epochs: .inf", "num_train_epochs is inf, expected a finite number above 0"),
        ("learning_rate: .inf", "learning_rate is inf, expected a finite number above 0"),
        ("mixing_temperature: .nan", "mixing_temperature is nan, expected a finite number from 0.1"),
        ("loss: {temperature: .inf}", "loss.temperature is inf, expected a finite number above 0"),
        ("loss: {distillation_weight: .inf}", "loss.distillation_weight is inf, expected at least 0"),
        ("loss: {score_margin: .nan}", "loss.score_margin is nan, expected a number, or null for no mask"),
        ("train: [{path: a, weight: .inf}]", "train: weight is inf, expected a finite number above 0"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(
    yaml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags refuse them as texts; a file can hold them."""
    train = "" if yaml.startswith("train") else "train: [{path: a}]\n"
    (tmp_path / "run.yaml").write_text(f"model: m\noutput_dir: o\n{train}{yaml}\n")
    assert message in error_of(capsys, "--config", str(tmp_path / "run.yaml"))


def test_dims_above_the_width_of_the_model() -> None:
    with pytest.raises(ValueError, match="512 is more than the model's embedding has, 384"):
        require_dims([512, 64], 384)


@pytest.mark.parametrize(
    "cls",
    [
        CostsConfig,
        EmbedConfig,
        EndpointConfig,
        LaunchCosts,
        MakeQueriesConfig,
        MergeConfig,
        MineConfig,
        RefreshConfig,
        RerankConfig,
        StageCosts,
    ],
)
def test_every_setting_is_explained(cls: type) -> None:
    explained = "".join(each.__doc__ or "" for each in cls.__mro__[:2])
    for each in fields(cls):
        assert f"    {each.name}: " in explained, each.name


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: f"{file.parent.name} {file.stem}")
def test_no_yaml_says_a_thing_twice(file: Path) -> None:
    """The later one would count without a word."""
    for node in nodes(yaml.compose(file.read_text(encoding="utf-8"))):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys)


def nodes(node: Any) -> Iterator[Any]:
    """All mappings."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from nodes(each)


@pytest.mark.parametrize("cls", [EmbedConfig, RerankConfig])
def test_every_yaml_loads(cls: type[TrainingConfig]) -> None:
    files = sorted((CONFIGS / cls.__name__.removesuffix("Config").lower()).glob("*.yaml"))
    assert files
    for file in files:
        arguments = ["--config", str(file), "--model", "m", "--output_dir", "o", "--train", "a"]
        assert parse_config(cls, "test", arguments).model == "m"


def test_every_yaml_of_mining_loads() -> None:
    files = sorted((CONFIGS / "mine").glob("*.yaml"))
    assert files
    for file in files:
        assert parse_config(MineConfig, "test", ["--config", str(file), "--output", "o"]).retrievers


def test_every_yaml_of_making_queries_loads() -> None:
    files = sorted((CONFIGS / "queries").glob("*.yaml"))
    assert files
    for file in files:
        arguments = ["--config", str(file), "--output", "pairs.jsonl"]
        assert parse_config(MakeQueriesConfig, "test", arguments).endpoint.url


def test_every_yaml_of_merging_loads() -> None:
    files = sorted((CONFIGS / "merge").glob("*.yaml"))
    assert files
    for file in files:
        more = ["--output", "o"] if "alphas" not in file.read_text(encoding="utf-8") else []
        assert parse_config(MergeConfig, "test", ["--config", str(file), *more]).dev


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": ["yes"]}, "answers: ['yes'], expected two words: for relevant and not relevant"),
        ({"train": [TrainData("a", in_batch_negatives=False)]}, "in_batch_negatives is the embedder's"),
        ({"train": [TrainData("a", symmetric=False)]}, "symmetric is the embedder's"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs a dev set"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    ],
)
def test_what_a_reranker_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RerankConfig(**{"model": "m", "output_dir": "o", "train": [TrainData("a")], **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "listwise", "positive_weight": 2.0},
            "positive_weight is pointwise's, and the objective is list",
        ),
        ({"objective": "margin_mse", "labels": "teacher"}, "labels is for pointwise and lambda, and the objective is"),
        ({"temperature": 0.5}, "pointwise has no temperature; set objective: listwise, lambda, distillation or marg"),
        ({"objective": "lambda", "teacher_temperature": 2.0}, "lambda has no teacher_temperature; set objective: dist"),
        ({"positive_weight": math.inf}, "loss.positive_weight is inf, expected a finite number above 0"),
    ],
)
def test_objectives_that_contradict_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RerankLossConfig(**settings)
