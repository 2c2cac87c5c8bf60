"""Adapters, checkpoints and directories as inputs of a merge."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel

from merging.in_memory import MemoryTensors
from nestling.checkpoint import TrainingState, trainable_tensors, write_training
from nestling.checkpoint.atomic import write_folder
from nestling.config.merge_methods import Recipe, equal_weights
from nestling.export.cross_encoder import write_cross_encoder
from nestling.export.embedder import export_embedder
from nestling.export.embedder_gate import EmbedderReport
from nestling.merging.inputs import Inputs
from nestling.merging.lora import PRODUCT_SIZE, open_adapter
from nestling.merging.merge import merge_into
from nestling.merging.models import gets_head, open_model, with_new_head
from nestling.merging.names import align
from nestling.merging.sources import Source
from nestling.models.adapters import load_lora, without_deprecations
from nestling.models.embedder import Embedder
from nestling.models.merged_weights import MergedWeights
from nestling.models.reranker import Reranker
from nestling.models.token_model import TokenModel
from tiny import tiny_cross_encoder, tiny_qwen3
from trained import with_lora, with_noise

COPY = Recipe("linear", equal_weights(1))


def whole(source: Source, name: str) -> torch.Tensor:
    return source.read(name, 0, source.specs[name].numel).view(source.specs[name].shape)


def adapter_on(base: Path, folder: Path, **settings: Any) -> None:
    """Write a peft adapter with random factors, neither of them zero."""
    model = AutoModel.from_pretrained(base)
    with without_deprecations():
        wrapped = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.05 * torch.randn_like(parameter)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)


def peft_merges(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The weights as peft merges them, in float64."""
    model = AutoModel.from_pretrained(base, dtype=torch.float64)
    with without_deprecations():
        merged: nn.Module = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return dict(merged.state_dict())


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
            "alpha_pattern": {"v_proj": 32, r"layers\.1\.mlp\.up_proj": 3},
        },
    ],
)
def test_an_adapter_is_what_peft_merges(
    tmp_path: Path, qwen3: Path, qwen3_base: Path, settings: dict[str, Any], prefixed: bool
) -> None:
    base = qwen3_base if prefixed else qwen3
    adapter_on(base, tmp_path, **settings)
    expected = peft_merges(base, tmp_path)
    source = open_adapter(str(tmp_path))
    names = align(expected.keys(), source.specs.keys())
    assert len(names) == len(source.specs) == len(expected)
    for name, to in names.items():
        torch.testing.assert_close(whole(source, to).double(), expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_slices_of_an_adapted_weight_are_those_of_the_whole(tmp_path: Path) -> None:
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16)
    adapter_on(base, tmp_path / "adapter", r=5, lora_alpha=7, target_modules="all-linear")
    source = open_adapter(str(tmp_path / "adapter"))
    assert source.base.read("norm.weight", 0, 1).dtype == torch.bfloat16
    for name in source.factors:
        expected = whole(source, name).view(-1)
        assert expected.dtype == torch.float32
        for length in (1000, 777, 64):
            starts = range(0, len(expected), length)
            slices = [source.read(name, start, min(start + length, len(expected))) for start in starts]
            assert torch.equal(torch.cat(slices), expected)


def test_weights_of_more_rows_than_are_multiplied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_qwen3(tmp_path / "base")
    adapter_on(base, tmp_path / "adapter", r=5, lora_alpha=7, target_modules="all-linear")
    source = open_adapter(str(tmp_path / "adapter"))
    at_once = {name: whole(source, name) for name in source.factors}
    assert all(each.numel() < PRODUCT_SIZE for each in at_once.values())
    monkeypatch.setattr("nestling.merging.lora.PRODUCT_SIZE", 1000)
    for name, expected in at_once.items():
        torch.testing.assert_close(whole(source, name), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(source.read(name, 1500, 2001), whole(source, name).view(-1)[1500:2001])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is all"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save is set"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa, which changes the base"),
        ({"target_modules": ["word_embeddings"]}, "word_embeddings.* is no factor of a linear layer"),
    ],
)
def test_adapters_beyond_plain_lora_are_refused(
    tmp_path: Path, bert: Path, settings: dict[str, Any], message: str
) -> None:
    adapter_on(bert, tmp_path, **{"r": 4, "target_modules": ["query"]} | settings)
    with pytest.raises(ValueError, match=message):
        open_model(str(tmp_path))


def test_an_adapter_that_is_used_in_another_way_than_its_base_is_refused(tmp_path: Path, bert: Path) -> None:
    """sentence-transformers writes its own files beside an adapter, which the merge would not have."""
    folder = tmp_path / "adapter"
    model = SentenceTransformer(str(bert), device="cpu")
    model.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    model.save(str(folder))
    assert open_model(str(folder), str(bert)).label == str(folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace('"mean"', '"cls"'))
    with pytest.raises(ValueError, match=r"its pooling, normalisation or prompts .*scripts/export.py --adapter"):
        open_model(str(folder), str(bert))


def test_an_adapter_on_a_resized_vocabulary_says_what_its_base_lacks(tmp_path: Path, qwen3: Path) -> None:
    """It was called damaged where it was loaded, and no plain LoRA where it was merged."""
    model = AutoModel.from_pretrained(qwen3)
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(rows + 3)
    with without_deprecations():
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
        adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    told = (
        rf"embed_tokens\.weight has {rows + 3:,} rows, and \S*embed_tokens\.weight of .* {rows:,}: the adapter "
        rf"was trained on a base .*resize_token_embeddings\({rows + 3}\)"
    )
    with pytest.raises(ValueError, match=told):
        open_model(str(tmp_path / "adapter"), str(qwen3))
    with pytest.raises(ValueError, match=told):
        load_lora(AutoModel.from_pretrained(qwen3), str(tmp_path / "adapter"))
    model = AutoModel.from_pretrained(qwen3)
    model.resize_token_embeddings(rows + 3)
    load_lora(model, str(tmp_path / "adapter"))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, qwen3: Path, bert: Path) -> None:
    adapter_on(qwen3, tmp_path, r=4, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"is not of .*which has no layers.0.self_attn.q_proj.weight \(2 tensors"):
        open_model(str(tmp_path), str(bert))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1}))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r": no adapter_model.safetensors; save it again"):
        open_adapter(str(tmp_path), str(qwen3))


def checkpoint_of(run: Path, model: TokenModel, base: Path, tuning: str) -> str:
    settings = {"model": str(base), "tuning": tuning, "lora": {"r": 4, "alpha": 8}}
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    folder = run / "checkpoints" / "step-7"
    folder.parent.mkdir()
    tensors = trainable_tensors(model)
    write_folder(folder, lambda path: write_training(path, tensors, TrainingState(step=7)))
    return str(folder)


Load = Callable[[Path], TokenModel]


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(
    ("fixture", "load"),
    [
        ("qwen3", Embedder.from_pretrained),
        ("qwen3_base", Embedder.from_pretrained),
        ("bert", Embedder.from_pretrained),
        ("qwen3_base", Reranker.from_pretrained),
    ],
)
def test_a_checkpoint_is_the_model_that_was_trained(
    tmp_path: Path, request: pytest.FixtureRequest, fixture: str, load: Load, tuning: str
) -> None:
    base: Path = request.getfixturevalue(fixture)
    model = load(base)
    model = with_lora(model) if tuning == "lora" else with_noise(model)
    source = open_model(checkpoint_of(tmp_path / "run", model, base, tuning))
    expected = MergedWeights(model.backbone)
    names = align(list(expected), source.specs.keys())
    assert len(names) == len(expected) == len(source.specs)
    frozen = [name for name in names if "pooler" in name]  # not in the checkpoint, so the base's
    for name, to in names.items():
        live = expected[name] if name not in frozen else whole(open_model(str(base)), to)
        torch.testing.assert_close(whole(source, to), live.detach(), rtol=1e-6, atol=1e-7, msg=name)
    # The same when it is merged into a model in memory.
    fresh = load(base)
    merge_into(Inputs.of([source]), COPY, fresh.backbone, threads=1)
    for name, tensor in MergedWeights(fresh.backbone).items():
        torch.testing.assert_close(tensor, whole(source, names[name]))


def test_a_checkpoint_has_its_bases_dtype_and_its_own_precision(tmp_path: Path) -> None:
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16)
    model = with_noise(Embedder.from_pretrained(base))
    source = open_model(checkpoint_of(tmp_path / "run", model, base, "full"))
    assert {spec.dtype for spec in source.specs.values()} == {torch.bfloat16}
    assert source.read("norm.weight", 0, 64).dtype == torch.float32


def test_damaged_and_misplaced_checkpoints_are_refused(tmp_path: Path, qwen3: Path, bert: Path) -> None:
    model = with_noise(Embedder.from_pretrained(qwen3))
    folder = checkpoint_of(tmp_path / "run", model, qwen3, "full")
    with pytest.raises(ValueError, match=r"is not of .*bert.*, which has no"):
        open_model(folder, str(bert))
    Path(folder, "model.safetensors").write_bytes(Path(folder, "model.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"step-7 cannot be loaded: the content of model.safetensors does not match"):
        open_model(folder)
    Path(folder, "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"step-7 cannot be loaded"):
        open_model(folder)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no config.yaml; expected RUN/checkpoints/step-N"):
        open_model(folder)
    with pytest.raises(ValueError, match=r"is whole, neither an adapter nor a checkpoint"):
        open_model(str(qwen3), str(qwen3))
    with pytest.raises(ValueError, match=r"nothing: not a directory, and no hub id"):
        open_model(str(tmp_path / "nothing"))


def test_what_nestling_exports_can_be_merged(tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.export.embedder.check_embedder", lambda *given: EmbedderReport())
    monkeypatch.setattr("nestling.export.embedder.render_embedder_card", lambda *given: "")
    embedder = with_lora(Embedder.from_pretrained(qwen3))
    export_embedder(embedder, tmp_path / "embedder", max_seq_length=32)
    served, adapter = open_model(str(tmp_path / "embedder")), open_model(str(tmp_path / "embedder" / "adapter"))
    Inputs.of([served, adapter], open_model(str(qwen3)))
    for name in served.specs:
        torch.testing.assert_close(whole(served, name), whole(adapter, name), rtol=1e-6, atol=1e-7)


def test_a_reranker_directory_that_is_a_cross_encoder_as_well(tmp_path: Path, qwen3_base: Path) -> None:
    folder = tmp_path / "reranker"
    shutil.copytree(qwen3_base, folder)
    write_cross_encoder(Reranker.from_pretrained(qwen3_base), folder, "causal", 64)
    assert "LogitScore" in (folder / "modules.json").read_text()
    inputs = Inputs.of([open_model(str(folder))], open_model(str(qwen3_base)))
    assert len(inputs.specs) == len(open_model(str(qwen3_base)).specs)


def test_the_example_of_the_docs(
    tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(qwen3, tmp_path / "runs" / name / "final")
    page = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
    exec(page.split("```python")[1].split("```")[0], {})
    assert "24 of 24 tensors are near parallel" in capsys.readouterr().out
    assert open_model("merged").specs == open_model(str(qwen3)).specs


def test_a_head_that_the_base_does_not_have_is_the_runs() -> None:
    base = MemoryTensors("base", {"layer.weight": torch.zeros(2), "norm.weight": torch.zeros(1)})
    names = ("base_model.model.bert.layer.weight", "base_model.model.classifier.weight")
    trained = MemoryTensors("step-1", {name: torch.tensor([1.0, 2.0]) for name in names})
    source = with_new_head("step-1", base, trained)
    assert source.specs.keys() == {"layer.weight", "norm.weight", "classifier.weight"}
    assert whole(source, "layer.weight").tolist() == whole(source, "classifier.weight").tolist() == [1, 2]
    assert whole(source, "norm.weight").tolist() == [0]


def test_only_rerankers_from_encoders_without_a_head_get_one(bert: Path, qwen3_base: Path, tmp_path: Path) -> None:
    of_reranker: dict[str, Any] = {"answers": []}
    assert gets_head(of_reranker, str(bert))
    assert not gets_head({}, str(bert))
    assert not gets_head(of_reranker, str(qwen3_base))
    assert not gets_head(of_reranker, str(tiny_cross_encoder(tmp_path / "cross")))
