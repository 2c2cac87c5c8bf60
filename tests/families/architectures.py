"""The table of architectures: one line builds a tiny random model of each, and says what is expected of it.

Add a line for a new architecture: tests/families tries it, and `python tests/families/write_page.py` writes what it
found into docs/models.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from nestling.models.pooling import Pooling

Kind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    Args:
        name: What the tests and the page call it.
        model_type: The type in config.json.
        kind: Encoders get BERT's tokenizer, decoders that of Qwen3, which appends an end token.
        settings: Values of its configuration besides those that all have.
        models: Published models of it, for the page.
        causal_head: Whether its files are those of a causal language model, as decoders are published.
        packs: Whether its texts can be packed.
        padding_side: Of its tokenizer; models that count positions from the beginning of a row pad on the right.
        refused: What the one-line refusal says, of an architecture that cannot be used.
        no_lora: The same, of one without adapters.
    """

    name: str
    model_type: str
    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: str = ""
    causal_head: bool = False
    packs: bool = False
    padding_side: str = "right"
    refused: str | None = None
    no_lora: str | None = None

    @property
    def pooling(self) -> Pooling:
        """Of its embeddings: of the last token for causal ones, of the first for some encoders, else the mean."""
        bidirectional = self.settings.get("is_causal") is False or self.settings.get("use_bidirectional_attention")
        if self.kind == "decoder" and not bidirectional:
            return "last"
        return "cls" if self.model_type in ("gte", "roberta") else "mean"


def encoder(
    name: str,
    model_type: str = "",
    *,
    models: str = "",
    refused: str | None = None,
    no_lora: str | None = None,
    packs: bool = False,
    **settings: Any,
) -> Architecture:
    """An encoder, by default with the name of its type."""
    return Architecture(
        name, model_type or name, "encoder", settings, models, packs=packs, refused=refused, no_lora=no_lora
    )


def decoder(
    name: str,
    model_type: str = "",
    *,
    models: str = "",
    head: bool = True,
    packs: bool = True,
    padding_side: str = "left",
    refused: str | None = None,
    no_lora: str | None = None,
    **settings: Any,
) -> Architecture:
    """A decoder, by default with the name of its type."""
    return Architecture(
        name,
        model_type or name,
        "decoder",
        settings,
        models,
        causal_head=head,
        packs=packs,
        padding_side=padding_side,
        refused=refused,
        no_lora=no_lora,
    )


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

BATCH = "gives a text other states beside a longer text than alone"
TWO_STACKS = "has an encoder and a decoder"

packed, padded = partial(encoder, packs=True), partial(decoder, packs=False)

EMBEDDERS = (
    packed("bert", models="BGE, E5, GTE, all-MiniLM"),
    packed("roberta", models="all-distilroberta, all-roberta-large"),
    packed("xlm-roberta", models="multilingual-E5, BGE-M3"),
    packed("camembert"),
    packed("distilbert", models="msmarco-distilbert, multi-qa-distilbert"),
    packed("electra"),
    packed("albert", models="paraphrase-albert"),
    encoder("mpnet", models="all-mpnet-base-v2, multi-qa-mpnet"),
    encoder("deberta"),
    encoder("deberta-v2"),
    packed("modernbert", models="gte-modernbert", local_attention=8, global_attn_every_n_layers=2),
    packed("nomic_bert", models="nomic-embed-text"),
    packed("gte"),
    packed("jina_embeddings_v3"),
    packed("eurobert", models="EuroBERT"),
    packed("ultrabert"),
    packed("ernie"),
    encoder("esm", refused=BATCH),
    encoder("mobilebert", refused=BATCH),
    encoder("convbert", refused=BATCH),
    encoder("squeezebert", no_lora="No modules were targeted"),
    encoder("longformer", attention_window=8),
    encoder("big_bird", attention_type="original_full"),
    encoder("nystromformer", refused=BATCH),
    encoder("roformer"),
    encoder("megatron-bert"),
    encoder("rembert"),
    packed("xlm-roberta-xl"),
    packed("data2vec-text"),
    encoder("fnet", refused=BATCH),
    encoder("luke", entity_vocab_size=8, entity_emb_size=8),
    encoder("mra"),
    encoder("yoso", refused=BATCH),
    packed("roberta-prelayernorm"),
    encoder("splinter"),
    encoder("xlm"),
    encoder("flaubert"),
    encoder("ibert", no_lora="No modules were targeted"),
    packed("bert-generation"),
    encoder("t5", models="sentence-t5, Instructor"),
    packed("embedding_gemma2_text", embedding_dim=32),
    encoder("bart", refused=TWO_STACKS),
    decoder("qwen2"),
    decoder("qwen2 sliding", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    padded("qwen2 bidirectional", "qwen2", is_causal=False, models="KaLM"),
    decoder("qwen3", models="Qwen3-Embedding"),
    padded("qwen3 bidirectional", "qwen3", is_causal=False),
    decoder("llama"),
    padded("llama bidirectional", "llama", is_causal=False, models="Nemotron, LLM2Vec"),
    decoder("llama without head", "llama", head=False),
    decoder("mistral", models="e5-mistral, SFR-Embedding"),
    decoder("mistral sliding", "mistral", sliding_window=8),
    decoder("mistral without head", "mistral", head=False),
    padded("mistral bidirectional", "mistral", is_causal=False),
    decoder("gemma"),
    padded("gemma2", sliding_window=8),
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
    padded("gptj", rotary_dim=4),
    padded("gpt_neo", attention_types=[[["global", "local"], 1]], window_size=8, padding_side="right"),
    decoder("gpt_neox"),
    decoder("gpt_bigcode", padding_side="right"),
    padded("bloom"),
    decoder("opt"),
    padded("falcon"),
    padded("falcon alibi", "falcon", alibi=True),
    padded("mpt"),
    decoder("granite"),
    padded("granitemoehybrid", layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    decoder("cohere"),
    decoder("cohere2", sliding_window=8),
    decoder("olmo"),
    decoder("olmo2"),
    decoder("olmo3", sliding_window=8),
    decoder("smollm3"),
    padded("stablelm"),
    decoder("starcoder2", sliding_window=8),
    decoder("qwen2_moe"),
    decoder("qwen3_moe"),
    decoder("mixtral"),
    padded("gpt_oss", sliding_window=8),
    padded("qwen3_next", layer_types=HYBRID, **GATED_DELTA_NET),
    padded("qwen3_5_text", layer_types=HYBRID, **GATED_DELTA_NET),
    padded("lfm2", layer_types=["conv", "full_attention"]),
    padded("mamba"),
    padded("mamba2", num_heads=8, state_size=8, n_groups=1, head_dim=8),
    padded("jamba", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4),
    padded("bamba", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    padded("falcon_h1", mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8),
    padded(
        "recurrent_gemma",
        block_types=["recurrent", "attention"],
        attention_window_size=8,
        lru_width=32,
        padding_side="right",
    ),
    padded("xglm", padding_side="right", attention_heads=4, max_position_embeddings=700),
    padded("codegen", rotary_dim=4),
    decoder("glm"),
    decoder("glm4"),
    decoder("exaone4", sliding_window=8),
    decoder("minicpm3", **LATENT),
    padded("nemotron"),
    decoder("helium"),
    decoder("hunyuan_v1_dense", padding_side="right"),
    decoder("internlm3"),
    decoder("ministral", sliding_window=8),
    decoder("ministral3"),
    decoder("modernbert-decoder", local_attention=8),
    decoder("nanochat"),
    decoder("seed_oss"),
    decoder("arcee"),
    decoder("apertus"),
    padded("llama4_text", attention_chunk_size=8),
    decoder("deepseek_v3", **LATENT),
    decoder("ernie4_5"),
    padded("biogpt", padding_side="right"),
    decoder("persimmon"),
)

# Those that are tried by default; the others are marked slow.
SAMPLE = (
    "bert",
    "xlm-roberta",
    "mpnet",
    "modernbert",
    "qwen3",
    "llama bidirectional",
    "mistral sliding",
    "gemma2",
    "qwen3_5_text",
    "esm",
)
