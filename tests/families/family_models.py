"""Tiny random models of any architecture, on disk as they are published, with the tokenizers of `tiny`."""

import json
from functools import cache
from pathlib import Path

import torch
from architectures import Architecture
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import tiny

# What configurations call their sizes; each takes those that it has.
SIZES: dict[str, int] = {
    "hidden_size": 32,
    "embedding_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "emb_dim": 32,
    "intermediate_size": 48,
    "hidden_dim": 48,
    "ffn_dim": 48,
    "d_inner": 48,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "n_heads": 4,
    "n_head": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MAX_LENGTH = 48


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return tiny.bert_tokenizer() if kind == "encoder" else tiny.qwen3_tokenizer(appends_eos=True)


def tiny_config(architecture: Architecture) -> PretrainedConfig:
    """A configuration of two layers and about 32 dimensions, with the special tokens of its tokenizer."""
    kind = type(AutoConfig.for_model(architecture.model_type))
    names = set(kind().to_dict()) | set(kind.attribute_map)
    sizes = {kind.attribute_map.get(name, name): size for name, size in SIZES.items() if name in names}
    tokenizer = tokenizer_of(architecture.kind)
    pad, end = ("[PAD]", "[SEP]") if architecture.kind == "encoder" else ("<|endoftext|>", "<|endoftext|>")
    special = {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": tokenizer.token_to_id(pad),
        "bos_token_id": tokenizer.token_to_id(end),
        "eos_token_id": tokenizer.token_to_id(end),
    }
    return kind(**{**sizes, **special, **architecture.settings})


def tiny_model(architecture: Architecture, seed: int = 0) -> PreTrainedModel:
    config = tiny_config(architecture)
    auto_class = AutoModelForCausalLM if architecture.causal_head else AutoModel
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = auto_class.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # larger than 0.02, so that texts differ after two layers
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    torch.random.set_rng_state(state)
    return model.eval()


def write_embedder(architecture: Architecture, folder: Path) -> Path:
    """Write a tiny embedder of an architecture with sentence-transformers' files; returns the folder."""
    model = tiny_model(architecture)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(architecture, folder)
    prompts = {"query": tiny.DEFAULT_QUERY_PROMPT if architecture.kind == "decoder" else "query: ", "document": ""}
    pooling = {"last": "lasttoken", "mean": "mean_tokens", "cls": "cls_token"}[architecture.pooling]
    tiny.write_sentence_transformers(folder, model.config.hidden_size, pooling, prompts)
    tiny.write_json(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return folder


def write_tokenizer(architecture: Architecture, folder: Path) -> None:
    tokenizer = tokenizer_of(architecture.kind)
    write = tiny.write_bert_tokenizer if architecture.kind == "encoder" else tiny.write_qwen3_tokenizer
    write(folder, tokenizer)
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": architecture.padding_side}
    tiny.write_json(path, json.loads(path.read_text()) | own)
