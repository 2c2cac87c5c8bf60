"""What the parser says of wrong flags and values, and the forms of YAML and flags that it takes."""

from pathlib import Path

import pytest

from nestling.config import DevData, EmbedConfig, MineConfig, TrainData, parse_config, read_section

REQUIRED = ["--model=m", "--output_dir=o", "--train=a.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tuning", "LoRA"], "tuning is 'LoRA', expected lora, qlora or full; did you mean lora?"),
        (
            ["--pooling", "avg"],
            "pooling is 'avg', expected last, mean, cls, max, mean_sqrt_len_tokens, weightedmean or null",
        ),
        (["--tuning"], "--tuning has no value; write --tuning lora, qlora or full"),
        (["--resume"], "--resume has no value; write --resume true"),
        (["--resume", "--use_cpu", "true"], "--resume has no value; write --resume true"),
        (["--lora.target_modules"], "--lora.target_modules has no value; write --lora.target_modules VALUE"),
        (["--batch_size", "1.5"], "batch_size is '1.5', expected a whole number"),
        (["--max_steps", "x"], "max_steps is 'x', expected a whole number or null"),
        (["--resume", "maybe"], "resume is 'maybe', expected true or false"),
        (["--refresh.max_score_ratio", "x"], "refresh.max_score_ratio is 'x', expected a number or null"),
        (["--report_to", "wandbb"], "report_to is 'wandbb', expected wandb or tensorboard; did you mean wandb?"),
        (["--train", '[{"path": "a", "weight": "x"}]'], "train: weight is 'x', expected a number"),
        (
            ["--train", "[{path:a.jsonl}]"],
            "'path:a.jsonl' has no blank behind the colon, so that YAML takes it for",
        ),
        (["b.jsonl"], "'b.jsonl' belongs to no flag; a value stands behind its flag, and several with commas between"),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
        (["--config", "/"], "--config /: not a file"),
        (["--learning-rat", "1"], "unknown key 'learning-rat'; did you mean 'learning_rate'?"),
    ],
)
def test_wrong_flags_in_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(EmbedConfig, "", [*REQUIRED, *flags])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said


def test_missing_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(EmbedConfig, "", ["--model=m"])
    assert capsys.readouterr().err == "error: missing: --output_dir, --train\n"


def test_flags_with_hyphens_are_those_with_underscores() -> None:
    config = parse_config(EmbedConfig, "", [*REQUIRED, "--learning-rate", "2e-5", "--lora.target-modules=q-proj,v"])
    assert (config.learning_rate, config.lora.target_modules) == (2e-5, ["q-proj", "v"])


def test_a_file_takes_what_flags_take(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: m\noutput_dir: o\ntrain: a.jsonl,b.jsonl\ndev: [set, {path: other, split: test}]\n"
        "learning_rate: 1e-5\nmatryoshka_dims: 32,16\nreport_to: wandb\nlora: {target_modules: 'q_proj,v_proj'}\n"
    )
    config = parse_config(EmbedConfig, "", ["--config", str(path)])
    assert config.train == [TrainData("a.jsonl"), TrainData("b.jsonl")]
    assert config.dev == [DevData("set"), DevData("other", split="test")]
    assert config.matryoshka_dims == [32, 16]
    assert config.report_to == ["wandb"]
    assert config.learning_rate == 1e-5
    assert config.lora.target_modules == ["q_proj", "v_proj"]


def test_sections_of_a_pipeline_do_too() -> None:
    mined = read_section("mine", MineConfig, {"data": "d", "output": "o", "retrievers": "bm25,m"})
    assert mined.retrievers == ["bm25", "m"]
    trained = read_section("embed", EmbedConfig, {"model": "m", "output_dir": "o", "train": "a", "matryoshka_dims": 64})
    assert (trained.train, trained.matryoshka_dims) == ([TrainData("a")], [64])
