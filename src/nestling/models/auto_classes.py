"""Which of transformers' Auto classes loads the model of an embedder."""

from typing import Any

from transformers import AutoModel, AutoModelForTextEncoding, PretrainedConfig

# Encoder-decoders of which sentence-transformers takes the encoder alone; AutoModel would load both.
ENCODER_OF = ("t5", "mt5", "umt5")


def text_model_class(config: PretrainedConfig) -> Any:
    """AutoModel, or AutoModelForTextEncoding for the encoder of an encoder-decoder."""
    return AutoModelForTextEncoding if config.model_type in ENCODER_OF else AutoModel
