"""The Matryoshka dimensions of a run that names none."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from nestling.config import EmbedConfig, parse_config
from nestling.config.nested import plain
from nestling.training.limits import with_matryoshka_dims
from nestling.training.start import start


def config_of(model: Path, run: Path, *flags: str) -> EmbedConfig:
    given = ["--model", str(model), "--output_dir", str(run), "--train", "a", "--use_cpu", "true", *flags]
    return parse_config(EmbedConfig, None, given)


def model_of_width(bert: Path, folder: Path, width: int, **more: object) -> Path:
    """The files of a model of this width, without its weights."""
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, "hidden_size": width, **more}))
    return folder


@pytest.mark.parametrize(
    ("width", "of_model", "flags", "dims"),
    [
        (384, None, [], [384, 192, 96]),
        (1024, None, [], [1024, 512, 256, 128, 64]),
        (150, None, [], [150, 75]),
        (48, None, [], []),
        (384, [512, 256, 32], [], [256, 32]),
        (384, None, ["--matryoshka_dims", "null"], [384, 192, 96]),
        (384, None, ["--matryoshka_dims", ""], []),
        (384, [256], ["--matryoshka_dims", "384"], [384]),
    ],
)
def test_dimensions_are_the_models_or_halves_unless_named(
    width: int, of_model: list[int] | None, flags: list[str], dims: list[int], bert: Path, tmp_path: Path
) -> None:
    more = {} if of_model is None else {"matryoshka_dimensions": of_model}
    model = model_of_width(bert, tmp_path / "model", width, **more)
    assert with_matryoshka_dims(config_of(model, tmp_path / "run", *flags)).matryoshka_dims == dims


@pytest.mark.parametrize("dims", [[384, 96], []])
def test_a_resumed_run_keeps_the_dimensions_that_it_began_with(dims: list[int], bert: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    config = config_of(model_of_width(bert, tmp_path / "model", 384), run, "--resume", "true")
    begun = plain(asdict(replace(config, matryoshka_dims=dims)))
    (run / "config.yaml").write_text(yaml.safe_dump(begun), encoding="utf-8")
    assert start(config) is None
    assert with_matryoshka_dims(config).matryoshka_dims == dims
    with pytest.raises(ValueError, match=r"started with other settings:\n  matryoshka_dims"):
        start(replace(config, matryoshka_dims=[64]))
