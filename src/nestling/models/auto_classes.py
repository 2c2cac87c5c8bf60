"""Which of transformers' Auto classes loads the model of an embedder."""

from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForTextEncoding, PretrainedConfig

from nestling.models.token_model import require_one_stack

# Encoder-decoders of which sentence-transformers takes the encoder alone; AutoModel would load both.
ENCODER_OF = ("t5", "mt5", "umt5")


def text_model_class(config: PretrainedConfig) -> Any:
    """AutoModel, or AutoModelForTextEncoding for the encoder of an encoder-decoder."""
    return AutoModelForTextEncoding if config.model_type in ENCODER_OF else AutoModel


def require_text_model(config: PretrainedConfig, model: str | Path) -> None:
    """Raise ValueError for a model of an encoder and a decoder, unless its encoder is loaded alone."""
    if config.model_type not in ENCODER_OF:
        require_one_stack(config, model)
