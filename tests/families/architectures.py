"""The table of architectures: one line builds a tiny random model of each, and says what is expected of it.

Add a line for a new architecture: tests/families tries it, and `python tests/families/write_page.py` writes what it
found into docs/models.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    Args:
        name: What the test and the page call it.
        model_type: The type in config.json; the name by default.
        kind: Encoders get BERT's tokenizer, decoders that of Qwen3, which appends an end token.
        settings: Values of its configuration besides those that all have.
        causal_head: Whether its files are those of a causal language model, as decoders are published.
        padding_side: Where its tokenizer pads: models that count positions from the first row's end pad on the right.
        models: Published models of it, for the page.
        refused: What the one-line refusal says, of an architecture that cannot be trained.
    """

    name: str
    model_type: str = ""
    kind: Kind = "encoder"
    settings: Mapping[str, Any] = field(default_factory=dict)
    causal_head: bool = False
    padding_side: str = "right"
    models: str = ""
    refused: str | None = None

    @property
    def pooling(self) -> str:
        """Of its embeddings: of the last token for causal ones, of the first for some encoders, else the mean."""
        bidirectional = self.settings.get("is_causal") is False or self.settings.get("use_bidirectional_attention")
        if self.kind == "decoder" and not bidirectional:
            return "last"
        return "cls" if self.model_type in ("gte", "roberta") else "mean"


def encoder(
    name: str, model_type: str = "", *, models: str = "", refused: str | None = None, **settings: Any
) -> Architecture:
    return Architecture(name, model_type or name, "encoder", settings, models=models, refused=refused)


def decoder(
    name: str,
    model_type: str = "",
    *,
    head: bool = True,
    padding_side: str = "left",
    models: str = "",
    refused: str | None = None,
    **settings: Any,
) -> Architecture:
    return Architecture(name, model_type or name, "decoder", settings, head, padding_side, models, refused)


HYBRID = ["linear_attention", "full_attention"]
GATED_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

LATENT = {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}

ARCHITECTURES = (
    encoder("bert", models="BGE, E5, GTE, MiniLM, mxbai, Arctic-Embed"),
    encoder("roberta", models="all-distilroberta, all-roberta-large"),
    encoder("xlm-roberta", models="multilingual-E5, BGE-M3, Arctic-Embed-L 2.0"),
    encoder("camembert"),
    encoder("distilbert", models="msmarco-distilbert, multi-qa-distilbert"),
    encoder("electra"),
    encoder("albert", models="paraphrase-albert"),
    encoder("mpnet", models="all-mpnet-base-v2, multi-qa-mpnet"),
    encoder("deberta"),
    encoder("deberta-v2"),
    encoder("modernbert", models="gte-modernbert, modernbert-embed", local_attention=8, global_attn_every_n_layers=2),
    encoder("nomic_bert", models="nomic-embed-text"),
    encoder("gte", models="gte-base-en-v1.5, gte-multilingual"),
    encoder("jina_embeddings_v3"),
    encoder("eurobert", models="EuroBERT"),
    encoder("ultrabert"),
    encoder("ernie"),
    encoder("esm"),
    encoder("mobilebert"),
    encoder("convbert"),
    encoder("squeezebert"),
    encoder("longformer", attention_window=8),
    encoder("big_bird"),
    encoder("nystromformer"),
    encoder("roformer"),
    encoder("megatron-bert"),
    encoder("rembert"),
    encoder("xlm-roberta-xl"),
    encoder("data2vec-text"),
    encoder("fnet"),
    encoder("luke", entity_vocab_size=8, entity_emb_size=8),
    encoder("mra"),
    encoder("yoso"),
    encoder("roberta-prelayernorm"),
    encoder("splinter"),
    encoder("xlm"),
    encoder("flaubert"),
    encoder("ibert"),
    encoder("bert-generation"),
    encoder("t5"),
    encoder("embedding_gemma2_text"),
    encoder("bart"),
    decoder("qwen2", models="gte-Qwen2"),
    decoder("qwen2 sliding", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    decoder("qwen2 bidirectional", "qwen2", is_causal=False, models="KaLM"),
    decoder("qwen3", models="Qwen3-Embedding"),
    decoder("qwen3 bidirectional", "qwen3", is_causal=False),
    decoder("llama", models="Llama"),
    decoder("llama bidirectional", "llama", is_causal=False, models="NV-Embed, Nemotron, LLM2Vec"),
    decoder("llama without head", "llama", head=False),
    decoder("mistral", models="e5-mistral, SFR-Embedding"),
    decoder("mistral sliding", "mistral", sliding_window=8),
    decoder("mistral without head", "mistral", head=False),
    decoder("mistral bidirectional", "mistral", is_causal=False),
    decoder("gemma"),
    decoder("gemma2", sliding_window=8),
    decoder("gemma3_text", sliding_window=8),
    decoder("gemma3_text bidirectional", "gemma3_text", use_bidirectional_attention=True, sliding_window=8, head=False),
    decoder(
        "gemma3n_text",
        sliding_window=8,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=640,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    decoder("gemma4_text", sliding_window=8, vocab_size_per_layer_input=640, hidden_size_per_layer_input=8),
    decoder("phi"),
    decoder("phi3"),
    decoder("gpt2", padding_side="right"),
    decoder("gptj", rotary_dim=4),
    decoder("gpt_neo", attention_types=[[["global", "local"], 1]], window_size=8, padding_side="right"),
    decoder("gpt_neox"),
    decoder("gpt_bigcode", padding_side="right"),
    decoder("bloom"),
    decoder("opt"),
    decoder("falcon"),
    decoder("falcon alibi", "falcon", alibi=True),
    decoder("mpt"),
    decoder("granite"),
    decoder("granitemoehybrid", layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    decoder("cohere"),
    decoder("cohere2", sliding_window=8),
    decoder("olmo"),
    decoder("olmo2"),
    decoder("olmo3", sliding_window=8),
    decoder("smollm3"),
    decoder("stablelm"),
    decoder("starcoder2", sliding_window=8),
    decoder("qwen2_moe"),
    decoder("qwen3_moe"),
    decoder("mixtral"),
    decoder("gpt_oss", sliding_window=8),
    decoder("qwen3_next", layer_types=HYBRID, **GATED_DELTA_NET),
    decoder("qwen3_5_text", layer_types=HYBRID, **GATED_DELTA_NET),
    decoder("lfm2", layer_types=["conv", "full_attention"]),
    decoder("mamba"),
    decoder("mamba2", num_heads=8, state_size=8, n_groups=1, head_dim=8),
    decoder("jamba", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4),
    decoder("bamba", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    decoder("falcon_h1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    decoder(
        "recurrent_gemma",
        block_types=["recurrent", "attention"],
        attention_window_size=8,
        lru_width=32,
        padding_side="right",
    ),
    decoder("xglm", attention_heads=4, max_position_embeddings=700),
    decoder("codegen", rotary_dim=4),
    decoder("glm"),
    decoder("glm4"),
    decoder("exaone4", sliding_window=8),
    decoder("minicpm3", **LATENT),
    decoder("nemotron"),
    decoder("helium"),
    decoder("hunyuan_v1_dense"),
    decoder("internlm3"),
    decoder("ministral", sliding_window=8),
    decoder("ministral3"),
    decoder("modernbert-decoder", local_attention=8),
    decoder("nanochat"),
    decoder("seed_oss"),
    decoder("arcee"),
    decoder("apertus"),
    decoder("llama4_text", attention_chunk_size=8),
    decoder("deepseek_v3", **LATENT),
    decoder("ernie4_5"),
    decoder("biogpt", padding_side="right"),
    decoder("persimmon"),
)
