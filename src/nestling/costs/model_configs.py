"""Configurations of the published Qwen3 models, so that nothing has to be downloaded."""

import re
from pathlib import Path

from transformers import PretrainedConfig, Qwen3Config

from nestling.models.token_model import read_config

QWEN3 = {  # hidden size, layers, attention heads, intermediate size
    "0.6B": (1024, 28, 16, 3072),
    "4B": (2560, 36, 32, 9728),
    "8B": (4096, 36, 32, 12288),
}
UNTIED_SIZES = {"8B"}  # the output layer does not share its weights with the embedding layer
QWEN3_NAME = re.compile(r"Qwen/Qwen3-(?P<kind>Embedding-|Reranker-)?(?P<size>0\.6B|4B|8B)(?P<base>-Base)?")


def model_config_of(model: str) -> PretrainedConfig:
    """The configuration of a published Qwen3 model by its hub id, or of a directory.

    Raises:
        ValueError: The model is neither.
    """
    found = QWEN3_NAME.fullmatch(model)
    if found is None:
        if not Path(model).is_dir():
            raise ValueError(
                f"model {model}: neither a directory with a config.json nor a Qwen3 model of 0.6B, 4B or 8B; give a "
                "model of the same shape, such as Qwen/Qwen3-0.6B-Base"
            )
        return read_config(model)
    hidden, layers, heads, intermediate = QWEN3[found["size"]]
    return Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151669 if found["kind"] else 151936,
        tie_word_embeddings=found["size"] not in UNTIED_SIZES,
        architectures=["Qwen3ForCausalLM"],
    )
