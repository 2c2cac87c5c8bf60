"""Adapters of every kind merge as peft merges them, or are refused with what to do instead."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from families.causal_models import tiny_causal
from nestling.models.adapters import attach_lora, load_lora, with_less_traffic, without_deprecations
from nestling.models.merged_weights import MergedWeights

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear layers": ("qwen3", {"target_modules": "all-linear"}),
    "rsLoRA": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
    "DoRA": ("qwen3", {"target_modules": "all-linear", "use_dora": True}),
    "GPT-2's layers": ("gpt2", {"target_modules": "all-linear"}),
    "GPT-2's layers with DoRA": ("gpt2", {"target_modules": "all-linear", "use_dora": True}),
    "token embeddings": ("qwen3", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled token embeddings": ("gemma3_text", {"target_modules": ["embed_tokens"]}),
    "token embeddings with DoRA": ("qwen3", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "experts": ("qwen3_moe", {"target_modules": "all-linear"}),
    "experts stored the other way": (
        "gpt_oss",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def backbone(name: str, folders: Path, tokenizer: Path, auto_class: Any = AutoModel) -> PreTrainedModel:
    folder = folders / name
    if not folder.exists():
        tiny_causal(name, folder, tokenizer)
    model: PreTrainedModel = auto_class.from_pretrained(folder, dtype=torch.float64)
    return model


def randomised(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter) + (0.5 if "magnitude" in name else 0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_adapters_merge_as_peft_merges_them(kind: str, folders: Path, qwen3_base: Path, tmp_path: Path) -> None:
    name, settings = KINDS[kind]
    config = LoraConfig(r=3, lora_alpha=5, **settings)
    with without_deprecations():
        model = with_less_traffic(get_peft_model(backbone(name, folders, qwen3_base), config)).double()
    randomised(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    ours = MergedWeights(model)
    loaded = MergedWeights(load_lora(backbone(name, folders, qwen3_base), str(tmp_path)).double())
    with without_deprecations():
        theirs = copy.deepcopy(model).merge_and_unload()
    base = backbone(name, folders, qwen3_base).state_dict()
    wanted = theirs.state_dict()
    assert ours.keys() == wanted.keys()
    changed = [name for name, weight in wanted.items() if not torch.equal(weight, base[name])]
    assert changed
    for each in wanted:
        for found in (ours, loaded):
            torch.testing.assert_close(found[each], wanted[each], rtol=1e-12, atol=1e-13, check_dtype=False)


def test_an_adapter_of_a_tied_output_layer_is_refused(folders: Path, qwen3_base: Path) -> None:
    model = backbone("gemma", folders, qwen3_base, AutoModelForCausalLM)
    adapted = attach_lora(model, r=3, alpha=5, dropout=0.0, target_modules=["embed_tokens"])
    with pytest.raises(ValueError, match=r"embed_tokens.weight is the weight of the output layer too.*tuning: full"):
        MergedWeights(adapted)


def test_dropout_of_experts_adapters_is_refused(folders: Path, qwen3_base: Path) -> None:
    with pytest.raises(ValueError, match=r"lora.dropout is 0.1, and adapters of experts' tensors take none; set lora"):
        attach_lora(backbone("qwen3_moe", folders, qwen3_base), r=3, alpha=5, dropout=0.1)


def test_modules_that_were_trained_in_full_are_refused(qwen3_base: Path) -> None:
    """Before anything is written: their names are not those of the base, and the adapter's are switched off alone."""
    model: PreTrainedModel = AutoModel.from_pretrained(qwen3_base)
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with without_deprecations():
        adapted = get_peft_model(model, config)
    with pytest.raises(
        ValueError, match=r"^embed_tokens was trained in full beside the adapter \(modules_to_save\).*unload"
    ):
        MergedWeights(adapted)


def test_an_adapter_of_another_kind_is_refused(folders: Path, qwen3_base: Path) -> None:
    model = backbone("lfm2", folders, qwen3_base)
    with pytest.raises(ValueError, match=r"conv has an adapter of type Conv1d on Conv1d, which cannot be merged exact"):
        MergedWeights(attach_lora(model, r=32, alpha=5, dropout=0.0, target_modules=["conv.conv"]))
