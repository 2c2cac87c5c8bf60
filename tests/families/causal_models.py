"""Tiny random causal language models of many architectures of transformers: a line for each.

`causal_table` gives the table of docs/models.md about rerankers.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# What most configurations take; those of others ignore what they do not know.
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "output_router_logits": True,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
GPT: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 512, "rotary_dim": 8}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8}
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOW: dict[str, Any] = {"sliding_window": 16}


@dataclass(frozen=True)
class CausalModel:
    """An architecture.

    Args:
        packed: Whether its prompts are packed; else they are padded.
        settings: Of its configuration, beside `SIZES`.
        model_type: As transformers calls it; by default its name in the table.
        left_padded: Whether padding on the left leaves its scores, so that it is exported as a CrossEncoder.
        refused: What a reranker says of it, where it does not take it.
    """

    packed: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""
    left_padded: bool = True
    refused: str = ""


PADDED = CausalModel(packed=False)

CAUSAL_MODELS: dict[str, CausalModel] = {
    "apertus": CausalModel(),
    "arcee": CausalModel(),
    "bamba": CausalModel(packed=False, settings={**MAMBA, "attn_layer_indices": [1]}),
    "biogpt": CausalModel(packed=False, left_padded=False),
    "bitnet": CausalModel(),
    "bloom": CausalModel(packed=False, settings=GPT),
    "codegen": CausalModel(packed=False, settings={**GPT, "n_ctx": 512}),
    "cohere": CausalModel(),
    "cohere2": CausalModel(settings=WINDOW),
    "ctrl": CausalModel(left_padded=False, settings={**GPT, "dff": 64}),
    "deepseek_v2": CausalModel(settings={**EXPERTS, **LATENT}),
    "deepseek_v3": CausalModel(settings={**EXPERTS, **LATENT}),
    "diffllama": CausalModel(),
    "ernie4_5": CausalModel(),
    "ernie4_5_moe": CausalModel(settings={**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}),
    "exaone4": CausalModel(settings=WINDOW),
    "falcon": PADDED,
    "falcon (ALiBi)": CausalModel(packed=False, settings={"alibi": True}, model_type="falcon"),
    "falcon_h1": CausalModel(packed=False, settings=MAMBA),
    "falcon_mamba": CausalModel(packed=False, settings={"state_size": 8}),
    "flex_olmo": CausalModel(settings=EXPERTS),
    "gemma": CausalModel(),
    "gemma2": CausalModel(packed=False, settings=WINDOW),
    "gemma3_text": CausalModel(settings=WINDOW),
    "glm": CausalModel(),
    "glm4": CausalModel(),
    "glm4_moe": CausalModel(settings=EXPERTS),
    "gpt2": CausalModel(left_padded=False, settings=GPT),
    "gpt_bigcode": CausalModel(left_padded=False, settings=GPT),
    "gpt_neo": CausalModel(
        packed=False,
        left_padded=False,
        settings={"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 16},
    ),
    "gpt_neox": CausalModel(),
    "gpt_oss": CausalModel(packed=False, settings={**EXPERTS, **WINDOW}),
    "gptj": CausalModel(packed=False, settings=GPT),
    "granite": CausalModel(settings={"logits_scaling": 3.0}),
    "granitemoe": CausalModel(settings={**EXPERTS, "logits_scaling": 3.0}),
    "granitemoehybrid": CausalModel(packed=False, settings={**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"]}),
    "helium": CausalModel(),
    "hunyuan_v1_dense": CausalModel(left_padded=False),
    "hunyuan_v1_moe": CausalModel(left_padded=False, settings=EXPERTS),
    "jamba": CausalModel(
        packed=False,
        settings={
            **EXPERTS,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "jetmoe": CausalModel(settings=EXPERTS),
    "lfm2": CausalModel(packed=False, settings={"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": CausalModel(
        packed=False, settings={**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
    ),
    "llama": CausalModel(),
    "mamba": CausalModel(packed=False, settings={"state_size": 8}),
    "mamba2": CausalModel(packed=False, settings={"state_size": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 8}),
    "minimax": CausalModel(packed=False, settings=EXPERTS),
    "minimax_m2": CausalModel(settings=EXPERTS),
    "ministral": CausalModel(settings=WINDOW),
    "mistral": CausalModel(settings={"sliding_window": None}),
    "mistral (window)": CausalModel(settings=WINDOW, model_type="mistral"),
    "mixtral": CausalModel(settings=EXPERTS),
    "mpt": CausalModel(packed=False, settings={"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "nanochat": CausalModel(),
    "nemotron": PADDED,
    "olmo": CausalModel(),
    "olmo2": CausalModel(),
    "olmo3": CausalModel(settings=WINDOW),
    "olmoe": CausalModel(settings=EXPERTS),
    "openai-gpt": CausalModel(left_padded=False, packed=False, settings=GPT),
    "opt": CausalModel(settings={"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "persimmon": CausalModel(),
    "phi": CausalModel(),
    "phi3": CausalModel(),
    "phimoe": CausalModel(settings=EXPERTS),
    "qwen2": CausalModel(),
    "qwen2_moe": CausalModel(settings=EXPERTS),
    "qwen3": CausalModel(),
    "qwen3_5_text": CausalModel(packed=False, settings=DELTA),
    "qwen3_moe": CausalModel(settings=EXPERTS),
    "qwen3_next": CausalModel(packed=False, settings={**EXPERTS, **DELTA}),
    "recurrent_gemma": CausalModel(
        packed=False,
        left_padded=False,
        settings={"attention_window_size": 16, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    ),
    "seed_oss": CausalModel(),
    "smollm3": CausalModel(),
    "stablelm": PADDED,
    "starcoder2": CausalModel(settings={"sliding_window": None}),
    "vaultgemma": CausalModel(packed=False, settings=WINDOW),
    "xglm": CausalModel(
        packed=False, left_padded=False, settings={"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}
    ),
    "bert": CausalModel(left_padded=False, settings={"is_decoder": True}, refused="makes its logits in a way"),
    "modernbert-decoder": CausalModel(refused="makes its logits in a way"),
}


def tiny_causal(name: str, folder: Path, tokenizer: Path) -> Path:
    """Write a model of `CAUSAL_MODELS` with the tokenizer of another directory; weights are random and seeded."""
    row = CAUSAL_MODELS[name]
    settings = {"vocab_size": vocabulary(tokenizer), **SIZES, **row.settings}
    if (row.model_type or name) == "falcon":
        del settings["head_dim"]  # which it computes
    config = AutoConfig.for_model(row.model_type or name, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    return folder


def vocabulary(tokenizer: Path) -> int:
    """Rows of the token embeddings of a model directory."""
    return int(AutoConfig.from_pretrained(tokenizer).vocab_size)


def causal_table() -> str:
    """A Markdown table: each architecture, how its prompts run, and whether sentence-transformers loads its export."""
    rows = ["| architecture | prompts | CrossEncoder |", "|---|---|---|"]
    for name, row in sorted(CAUSAL_MODELS.items()):
        prompts = "refused" if row.refused else "packed" if row.packed else "padded"
        rows.append(f"| {name} | {prompts} | {'yes' if row.left_padded and not row.refused else 'no'} |")
    return "\n".join(rows)
