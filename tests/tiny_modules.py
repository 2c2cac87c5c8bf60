"""Tiny random models with modules of sentence-transformers behind the pooling, and of families that have them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Gemma3TextConfig, Gemma3TextModel, PreTrainedModel, T5Config, T5EncoderModel

from tiny import tiny_bert, tiny_qwen3

Modules = Sequence[tuple[str, Mapping[str, Any]]]
PROMPTS = {"query": "query: ", "document": "passage: "}
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def dense(into: int, out: int, activation: str = TANH, **settings: Any) -> tuple[str, Mapping[str, Any]]:
    """A Dense module."""
    bias = settings.pop("bias", True)
    sizes = {"in_features": into, "out_features": out}
    return "Dense", {**sizes, "bias": bias, "activation_function": activation, **settings}


def with_modules(
    folder: Path,
    modules: Modules,
    *,
    pooling: Mapping[str, Any] | None = None,
    prefix: str = "sentence_transformers.models.",
) -> Path:
    """Put modules behind the pooling of a model, with random weights; each has a folder called after its kind.

    Args:
        folder: The model.
        modules: Kind and config.json of each.
        pooling: Replaces 1_Pooling/config.json.
        prefix: Of the names in modules.json.
    """
    generator = torch.Generator().manual_seed(7)
    entries = [("Transformer", ""), ("Pooling", "1_Pooling")]
    for number, (kind, config) in enumerate(modules, 2):
        path = folder / f"{number}_{kind}_own"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        weights = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes(kind, config).items()}
        if weights:
            save_file(weights, path / "model.safetensors")
        entries.append((kind, path.name))
    listed = [{"idx": i, "name": str(i), "path": path, "type": prefix + kind} for i, (kind, path) in enumerate(entries)]
    (folder / "modules.json").write_text(json.dumps(listed))
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def shapes(kind: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a module as sentence-transformers has them."""
    if kind == "LayerNorm":
        return {"norm.weight": (config["dimension"],), "norm.bias": (config["dimension"],)}
    if kind != "Dense":
        return {}
    into, out = config["in_features"], config["out_features"]
    bias = {"linear.bias": (out,)} if config["bias"] else {}
    residual = {"residual.weight": (out, into)} if config.get("use_residual") and into != out else {}
    return {"linear.weight": (out, into), **bias, **residual}


def flags(*modes: str, width: int = 48, include_prompt: bool = True) -> dict[str, Any]:
    """1_Pooling/config.json in the older schema."""
    names = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {f"pooling_mode_{name}": name in modes for name in names}
    return {"word_embedding_dimension": width, **chosen, "include_prompt": include_prompt}


def tiny_headed_bert(folder: Path, modules: Modules, pooling: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """BERT with mean pooling, E5's prompts and modules behind the pooling."""
    return with_modules(tiny_bert(folder, prompts=PROMPTS), modules, pooling=pooling, **settings)


def tiny_stella(folder: Path) -> Path:
    """A Qwen decoder with mean pooling and a Dense module to more dimensions, as stella_en_1.5B_v5."""
    modules = [dense(64, 80, IDENTITY), ("Normalize", {})]
    return with_modules(tiny_qwen3(folder), modules, pooling=flags("mean_tokens", width=64))


def tiny_embedding_gemma(folder: Path) -> Path:
    """Gemma 3 that attends in both directions, with windows, mean pooling and two Dense modules, as EmbeddingGemma."""
    tiny_bert(folder, prompts={"query": "task: search result | query: ", "document": "title: none | text: "})
    config = Gemma3TextConfig(
        vocab_size=vocabulary(folder),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=128,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
        pad_token_id=0,
    )
    replace_transformer(folder, Gemma3TextModel, config)
    dense_modules = [dense(48, 96, IDENTITY, bias=False), dense(96, 48, IDENTITY, bias=False)]
    return with_modules(folder, [*dense_modules, ("Normalize", {})])


def tiny_sentence_t5(folder: Path) -> Path:
    """The encoder of T5 with mean pooling and a Dense module without bias, as sentence-t5-base."""
    tiny_bert(folder)
    config = T5Config(
        vocab_size=vocabulary(folder),
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    replace_transformer(folder, T5EncoderModel, config)
    return with_modules(folder, [dense(48, 32, IDENTITY, bias=False), ("Normalize", {})])


def vocabulary(folder: Path) -> int:
    """Number of tokens of a model's tokenizer."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return len(tokenizer["model"]["vocab"])


def replace_transformer(folder: Path, kind: type[PreTrainedModel], config: Any) -> None:
    """Write another transformer into a model, with weights that tell texts apart."""
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model = kind(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)


def copy_without_weights(folder: Path, to: Path) -> Path:
    """A copy of a model without the weights of its transformer and its modules."""
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
