"""scripts/merge.py as it is run."""

import json
import re
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ranks import run_recipe
from safetensors.torch import load_file, save_file

from nestling.checkpoint import TrainingState, trainable_tensors, write_training
from nestling.checkpoint.atomic import write_folder
from nestling.config import EmbedConfig, RerankConfig, TrainData
from nestling.export.embedder import export_embedder
from nestling.export.reranker import export_reranker
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.training.models import load_reranker
from recipes.runs import arguments, run_main
from scripts.merge import main

merge = partial(run_main, main)


@pytest.fixture(scope="module")
def run(qwen3: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with LoRA and four checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = {"max_steps": 8, "save_steps": 2, "save_total_limit": 4, "lora.dropout": 0.0, "dev": data / "dev"}
    run_recipe(*arguments(qwen3, data, folder, **more))
    return folder


def named(path: Path, name: str) -> str:
    """A dataset under a name."""
    return json.dumps([{"path": str(path), "name": name}])


def merged_by_hand(run: Path, steps: list[int], base: Path) -> dict[str, torch.Tensor]:
    """The mean of the adapted layers in float64."""
    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    for step in steps:
        stored = load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")
        for name in [each for each in stored if ".lora_A." in each]:
            layer = name.removeprefix("backbone.base_model.model.").split(".lora_A.")[0]
            change = stored[name.replace(".lora_A.", ".lora_B.")].double() @ stored[name].double()
            weights[f"{layer}.weight"] += change * (64 / 4) / len(steps)
    return weights


def test_checkpoints_of_a_run_become_one_model(run: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    output, results = tmp_path / "merged", tmp_path / "results.json"
    done = merge("--run", run, "--last", 2, "--method", "linear", "--output", output, "--dev", data / "dev",
                 "--results", results)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "linear of 2 models" in done.stdout
    assert "cosine 0.9" in done.stdout
    assert "passed the parity gate" in done.stdout
    actual, expected = load_file(output / "model.safetensors"), merged_by_hand(run, [6, 8], qwen3)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(actual[name].double().numpy(), tensor.numpy(), atol=1e-6, err_msg=name)
    record = json.loads(results.read_text())
    assert (record["method"], record["weights"]) == ("linear", [1.0, 1.0])
    assert record["models"] == ["step-6", "step-8"]
    assert record["results"].keys() == record["base"].keys() == {"dev/dev"}
    card = (output / "README.md").read_text()
    assert "- step-6\n" in card
    assert str(run) not in card
    assert Embedder.from_pretrained(output).prefix("query") == Embedder.from_pretrained(qwen3).prefix("query")
    again = merge("--run", run, "--last", 2, "--output", output)
    assert again.stderr.startswith("error: output:")


def test_weights_are_searched_and_the_best_merge_is_written(run: Path, data: Path, tmp_path: Path) -> None:
    output, results = tmp_path / "merged", tmp_path / "results.json"
    done = merge("--run", run, "--steps", "2,6,8", "--search", 9, "--dev", data / "dev",
                 "--test", named(data / "dev", "test"), "--output", output, "--results", results)  # fmt: skip
    assert done.returncode == 0, done.stderr
    trials = json.loads(results.read_text())["search"]
    assert trials[0]["tried"].startswith("the base, ")
    assert [trial["tried"] for trial in trials[1:4]] == ["1, 0, 0", "0, 1, 0", "0, 0, 1"]
    assert len(trials) == 10
    best = max(trials, key=lambda trial: trial["nDCG@10"])
    written = json.loads(results.read_text())
    assert ", ".join(f"{weight:g}" for weight in written["weights"]) == best["tried"]
    assert written["results"]["test"] == written["results"]["dev/dev"] == best["dev"]["dev/dev"]
    assert "the base, " in done.stdout
    assert "greedy soup" in done.stdout


def test_a_search_writes_no_merge_that_is_not_better_than_the_base(
    run: Path, qwen3: Path, data: Path, tmp_path: Path
) -> None:
    copy, results = shutil.copytree(qwen3, tmp_path / "copy"), tmp_path / "results.json"
    done = merge("--models", f"{qwen3},{copy}", "--base", run / "final", "--search", 3, "--dev", data / "dev",
                 "--output", tmp_path / "merged", "--results", results)  # fmt: skip
    assert done.returncode == 2
    assert "error: the base is best, with nDCG@10 0." in done.stderr
    assert not (tmp_path / "merged").exists()
    assert len(json.loads(results.read_text())["search"]) == 4


def test_alphas_go_from_the_base_to_the_merge(run: Path, qwen3: Path, data: Path, tmp_path: Path) -> None:
    results, plot = tmp_path / "results.json", tmp_path / "alphas.png"
    done = merge("--models", run / "final", "--base", qwen3, "--alphas", "0,0.5,1", "--dev", data / "dev",
                 "--other", named(data / "dev", "elsewhere"), "--results", results, "--plot", plot)  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = json.loads(results.read_text())["alphas"]
    assert [each["alpha"] for each in points] == [0, 0.5, 1]
    evaluations = {
        line["step"]: line["eval"]
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "eval" in line
    }
    assert points[0]["dev"] == pytest.approx(evaluations[0]["dev/dev"]["64"]["nDCG@10"], abs=1e-6)
    assert plot.read_bytes().startswith(b"\x89PNG")


def moved(model: Path, folder: Path, seed: int) -> Path:
    """A model whose weights differ from those of another."""
    shutil.copytree(model, folder)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    near = {name: each + 0.02 * torch.randn(each.shape, generator=generator) for name, each in weights.items()}
    save_file(near, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_alpha_is_written_as_it_was_measured(qwen3: Path, data: Path, tmp_path: Path) -> None:
    """By the flags that the command prints: of one model, and of the mean of two."""
    models = [moved(qwen3, tmp_path / f"model-{seed}", seed) for seed in range(2)]
    base = load_file(qwen3 / "model.safetensors")
    for count in (1, 2):
        output, chosen = tmp_path / f"merged-{count}", ("--models", ",".join(map(str, models[:count])), "--base", qwen3)
        tried = merge(*chosen, "--dev", data / "dev", "--alphas", 0.5)
        flags = re.search(r"to write that of an alpha: (.*) --scale ALPHA --output DIR\n", tried.stdout)
        assert flags is not None, tried.stderr
        done = merge(*chosen, *flags[1].split(), "--scale", 0.5, "--output", output)
        assert done.returncode == 0, done.stderr
        trained = [load_file(each / "model.safetensors") for each in models[:count]]
        for name, tensor in load_file(output / "model.safetensors").items():
            mean = torch.stack([each[name].double() for each in trained]).mean(dim=0)
            torch.testing.assert_close(tensor.double(), (base[name].double() + mean) / 2, atol=1e-6, rtol=0)


def test_a_merge_may_be_one_of_its_models(qwen3: Path, tmp_path: Path) -> None:
    """As where a search finds the first model to be the best."""
    other, output = moved(qwen3, tmp_path / "other", 1), tmp_path / "merged"
    done = merge("--models", f"{qwen3},{other}", "--weights", "1,0", "--output", output)
    assert done.returncode == 0, done.stderr
    first, written = (load_file(each / "model.safetensors") for each in (qwen3, output))
    assert written.keys() == first.keys()
    assert all(torch.equal(written[name], first[name]) for name in first)


def test_embedders_of_a_base_with_a_head_and_without_a_pooler(bert: Path, data: Path, tmp_path: Path) -> None:
    """The base's files are those of a masked language model, which needs no pooler."""
    base = shutil.copytree(bert, tmp_path / "base")
    weights = {
        f"bert.{name}": each for name, each in load_file(bert / "model.safetensors").items() if "pool" not in name
    }
    weights["cls.predictions.bias"] = torch.zeros(4)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    models = ",".join(str(moved(bert, tmp_path / f"model-{seed}", seed)) for seed in range(2))
    chosen = ("--models", models, "--base", base, "--dev", data / "dev")
    done = merge(*chosen, "--method", "ties", "--density", 0.5, "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "pooler.dense.weight" in load_file(tmp_path / "merged" / "model.safetensors")
    tried = merge(*chosen, "--alphas", "0,1")
    assert tried.returncode == 0, tried.stderr


def test_a_reranker_whose_base_has_no_head_is_measured_without_it(bert: Path, data: Path, tmp_path: Path) -> None:
    base, run = shutil.copytree(bert, tmp_path / "base"), tmp_path / "run"
    (base / "modules.json").unlink()
    config = RerankConfig(
        model=str(base),
        output_dir=str(run),
        train=[TrainData("a.jsonl")],
        query_max_length=16,
        document_max_length=32,
        tuning="full",
        precision="fp32",
    )
    reranker = load_reranker(config)
    for step in (2, 4):
        for parameter in reranker.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        tensors, state = trainable_tensors(reranker), TrainingState(step=step)
        write_folder(run / "checkpoints" / f"step-{step}", partial(write_training, tensors=tensors, state=state))
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    done = merge("--run", run, "--method", "linear", "--dev", data / "dev", "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert "base has no head to score pairs with, and is not measured" in done.stdout
    assert Reranker.from_pretrained(tmp_path / "merged").settings.query_max_length == 16


@pytest.mark.parametrize("first", ["final", "checkpoints/step-2"])
def test_the_result_of_a_run_and_a_checkpoint_where_the_base_is_no_embedder(
    first: str, bert: Path, tmp_path: Path
) -> None:
    """Pooling and prompts are the run's; they were compared with those of the base, which has none."""
    base, run = shutil.copytree(bert, tmp_path / "base"), tmp_path / "run"
    (base / "modules.json").unlink()
    config = EmbedConfig(
        model=str(base),
        output_dir=str(run),
        train=[TrainData("a.jsonl")],
        tuning="full",
        precision="fp32",
        pooling="cls",
        query_prompt="query: ",
        max_seq_length=32,
    )
    embedder = Embedder.from_pretrained(base, pooling="cls", query_prompt="query: ")
    for parameter in embedder.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    write = partial(write_training, tensors=trainable_tensors(embedder), state=TrainingState(step=2))
    write_folder(run / "checkpoints" / "step-2", write)
    stored = load_file(run / "checkpoints" / "step-2" / "model.safetensors")
    for parameter in embedder.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    export_embedder(embedder, run / "final", max_seq_length=32)
    second = {"final": "checkpoints/step-2"}.get(first, "final")
    models = f"{run / first},{run / second}"
    done = merge("--models", models, "--method", "linear", "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    merged = Embedder.from_pretrained(tmp_path / "merged")
    assert (merged.pooling, merged.prefix("query")) == ("cls", "query: ")
    name = "encoder.layer.0.attention.self.query.weight"
    found = [load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "merged", run / "final")]
    torch.testing.assert_close(found[0], (found[1] + stored[f"backbone.{name}"]) / 2)


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    done = merge("--run", tmp_path / "run", "--output", tmp_path / "merged")
    assert done.returncode == 2
    assert "checkpoints has no checkpoints; expected step-N folders" in done.stderr


def test_rerankers_are_merged_and_measured_on_candidates(qwen3_base: Path, data: Path, tmp_path: Path) -> None:
    models = []
    for seed in range(2):
        reranker = Reranker.from_pretrained(qwen3_base)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in reranker.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        models.append(tmp_path / f"model-{seed}")
        export_reranker(reranker, models[-1])
    output = tmp_path / "merged"
    done = merge("--models", f"{models[0]},{models[1]}", "--weights", "0.25,0.75", "--method", "linear",
                 "--dev", data / "dev", "--output", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other, actual = (load_file(each / "model.safetensors") for each in (*models, output))
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, 0.25 * one[name] + 0.75 * other[name], atol=1e-6, rtol=0)
    assert Reranker.from_pretrained(output).settings == Reranker.from_pretrained(models[0]).settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either --models or --run"),
        ({"models": "a"}, "one model, a, is no merge"),
        ({"models": "a,a"}, "models: one is given twice"),
        ({"run": "RUN", "last": 9}, "last is 9, and .* has 4 checkpoints; --save_total_limit keeps more"),
        ({"run": "RUN", "steps": "2,3"}, "has no step 3; it has 2, 4, 6, 8"),
        ({"run": "RUN", "method": "slerp"}, "slerp of 4 models, expected 2"),
        ({"run": "RUN", "weights": "1,2"}, "weights: 2 numbers for 4 models"),
        ({"run": "RUN", "search": 5}, "search needs --dev"),
        ({"run": "RUN", "search": 3, "dev": "x"}, "search is 3, fewer than the 4 models"),
        ({"run": "RUN", "dev": "not-there"}, "not-there"),
        (
            {"run": "RUN", "dev": "DATA/dev", "test": "DATA/dev"},
            "dev, test and other: two datasets are called 'dev/dev'",
        ),
        ({"models": "a,b", "method": "ties"}, "ties needs a base, the model that all were trained from"),
    ],
)
def test_what_cannot_be_merged_is_refused_at_once(
    arguments: dict[str, Any], message: str, run: Path, data: Path, tmp_path: Path
) -> None:
    places = {name: str(value).replace("RUN", str(run)).replace("DATA", str(data)) for name, value in arguments.items()}
    flags = [f"--{name}={value}" for name, value in places.items()]
    done = merge(*flags, "--output", tmp_path / "merged")
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "merged").exists()
