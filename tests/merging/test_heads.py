"""The modules behind an embedder's pooling merge like its other weights."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nestling.checkpoint import TrainingState, trainable_tensors, write_training
from nestling.checkpoint.atomic import write_folder
from nestling.config.merge_methods import Recipe, Weights
from nestling.export.card import Card
from nestling.export.embedder import export_embedder
from nestling.merging.compatibility import require_compatible
from nestling.merging.inputs import Inputs
from nestling.merging.merge import merge_into
from nestling.merging.models import open_model
from nestling.merging.sources import Source
from nestling.merging.target import EmbedderTarget, target_of_directory
from nestling.models.embedder import Embedder
from tiny_modules import tiny_stella
from trained import with_lora

TEXTS = ["find all files", "short", "def f(x):\n    return x"]
WEIGHT = "head.0.linear.weight"


def with_trained_head(embedder: Embedder) -> Embedder:
    for parameter in embedder.head.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return embedder


def whole(source: Source, name: str) -> torch.Tensor:
    return source.read(name, 0, source.specs[name].numel).view(source.specs[name].shape)


def another_model(base: Path, folder: Path) -> Path:
    """A copy whose head has other weights."""
    shutil.copytree(base, folder)
    file = folder / "2_Dense_own" / "model.safetensors"
    save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
    return folder


def test_heads_of_directories_adapters_and_checkpoints(tmp_path: Path) -> None:
    base = tiny_stella(tmp_path / "base")
    embedder = with_trained_head(with_lora(Embedder.from_pretrained(base)))
    export_embedder(embedder, tmp_path / "final", max_seq_length=32)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"model": str(base), "lora": {"alpha": 8}}))
    checkpoint = run / "checkpoints" / "step-1"
    checkpoint.parent.mkdir()
    write_folder(checkpoint, lambda path: write_training(path, trainable_tensors(embedder), TrainingState()))
    trained = embedder.head.state_dict()["0.linear.weight"]
    for model in (tmp_path / "final", tmp_path / "final" / "adapter", checkpoint):
        source = open_model(str(model), None if model.name == "final" else str(base))
        torch.testing.assert_close(whole(source, WEIGHT), trained, atol=0, rtol=0)
    alone = tmp_path / "alone"  # an adapter of peft, which has no head beside it
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "final" / "adapter" / name, alone)
    stored = load_file(base / "2_Dense_own" / "model.safetensors")
    torch.testing.assert_close(whole(open_model(str(alone), str(base)), WEIGHT), stored["linear.weight"])


def test_a_merge_of_heads_is_exported(tmp_path: Path) -> None:
    base = tiny_stella(tmp_path / "base")
    other = another_model(base, tmp_path / "other")
    require_compatible([str(base), str(other)])
    target = target_of_directory(str(base), torch.float32)
    assert isinstance(target, EmbedderTarget)
    before = target.embedder.encode(TEXTS, kind="query", max_length=32)
    merge_into(
        Inputs.of([open_model(str(base)), open_model(str(other))]),
        Recipe("linear", Weights((0.5, 0.5))),
        target.backbone,
    )
    own = load_file(base / "2_Dense_own" / "model.safetensors")
    torch.testing.assert_close(target.embedder.head.state_dict()["0.linear.bias"], own["linear.bias"] + 0.25)
    report = target.export(tmp_path / "merged", None, Card(), allow_failed_gate=False)
    assert report.failures == []
    merged = Embedder.from_pretrained(tmp_path / "merged").encode(TEXTS, kind="query", max_length=32)
    torch.testing.assert_close(merged, target.embedder.encode(TEXTS, kind="query", max_length=32), atol=1e-6, rtol=0)
    assert (merged - before).abs().max() > 1e-2


def test_other_modules_cannot_be_merged(tmp_path: Path) -> None:
    base = tiny_stella(tmp_path / "base")
    other = another_model(base, tmp_path / "other")
    config = other / "2_Dense_own" / "config.json"
    config.write_text(config.read_text().replace("linear.Identity", "activation.Tanh"))
    with pytest.raises(ValueError, match=r"modules behind the pooling is \[\('Dense'"):
        require_compatible([str(base), str(other)])
