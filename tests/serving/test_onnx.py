"""scripts/onnx_check.py on files that torch writes, and behind a marker on one that optimum writes."""

import os
import shutil
import subprocess
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nestling.export.reranker import export_reranker
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import EncoderSettings
from recipes.runs import run_main
from scripts.onnx_check import main
from tiny import tiny_cross_encoder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

onnx_check = partial(run_main, main)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Logits(nn.Module):
    """A classifier with positional inputs, as torch.onnx wants them."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.classifier = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager")

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(**dict(zip(INPUTS, inputs, strict=True))).logits
        return logits


def convert(directory: Path, output: Path, *, name: str = "logits") -> Path:
    """What optimum writes: model.onnx, the configuration and the tokenizer."""
    output.mkdir()
    shutil.copy(directory / "config.json", output)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(output)
    batch = tokenizer(["a", "bc"], ["d", "e f"], padding=True, return_tensors="pt")
    axes: Any = {each: {0: "pairs", 1: "tokens"} for each in INPUTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which needs no further package
        torch.onnx.export(
            Logits(directory).eval(),
            tuple(batch[each] for each in INPUTS),
            str(output / "model.onnx"),
            input_names=list(INPUTS),
            output_names=[name],
            dynamic_axes=axes,
            dynamo=False,
        )
    return output


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported reranker with an instruction."""
    folder = tmp_path_factory.mktemp("onnx")
    settings = EncoderSettings("Find it:", activation="none")
    base = Reranker.from_pretrained(tiny_cross_encoder(folder / "base"), settings=settings)
    export_reranker(base, folder / "final", trained=False)
    return folder / "final"


@pytest.fixture(scope="module")
def converted(directory: Path) -> Path:
    return convert(directory, directory.parent / "onnx")


def test_a_file_of_the_same_weights_passes(directory: Path, converted: Path) -> None:
    done = onnx_check("--model", directory, "--onnx", converted, "--tolerance", "1e-5")
    assert done.returncode == 0, done.stderr
    assert "alone and in one batch: logits of up to " in done.stdout
    assert "differ by at most" in done.stdout


def test_a_file_of_other_weights_does_not(directory: Path, converted: Path, tmp_path: Path) -> None:
    other = tiny_cross_encoder(tmp_path / "other", seed=3)
    done = onnx_check("--model", other, "--onnx", converted)
    assert done.returncode == 1
    assert "they differ by more than 0.001 (--tolerance)" in done.stdout


def test_what_is_no_file_of_a_classifier_is_refused(directory: Path, tmp_path: Path) -> None:
    missing = onnx_check("--model", directory, "--onnx", tmp_path)
    assert missing.returncode == 2
    assert "no model.onnx in it; write it with optimum-cli export onnx" in missing.stderr
    hidden = convert(directory, tmp_path / "hidden", name="last_hidden_state")
    done = onnx_check("--model", directory, "--onnx", hidden)
    assert "answers last_hidden_state; convert with --task text-classification" in done.stderr


@pytest.mark.slow
def test_the_documented_command_converts(directory: Path, tmp_path: Path) -> None:
    """optimum wants an older transformers, so it is in an environment of its own: NESTLING_OPTIMUM is its command."""
    command = os.environ.get("NESTLING_OPTIMUM")
    if command is None:
        pytest.skip("NESTLING_OPTIMUM names no optimum-cli")
    task = ["--library", "transformers", "--task", "text-classification"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([command, "export", "onnx", "--model", directory, *task, tmp_path], check=True, env=environment)
    done = onnx_check("--model", directory, "--onnx", tmp_path, "--tolerance", "1e-5")
    assert done.returncode == 0, done.stdout + done.stderr
