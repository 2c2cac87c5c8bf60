"""Models of random weights, tokenizers of whole words and texts of random words, for comparisons."""

import random
from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def random_qwen3(
    kind: Callable[[Any], "PreTrainedModel"],
    *,
    hidden: int,
    layers: int,
    head: int,
    vocabulary: int,
    longest: int,
    tied: bool = False,
) -> "PreTrainedModel":
    """A Qwen3 of a class of transformers, a key-value head for two query heads, weights from a fixed seed."""
    import torch
    from transformers import Qwen3Config

    torch.manual_seed(0)
    model = kind(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // head,
            num_key_value_heads=max(1, hidden // (2 * head)),
            head_dim=head,
            max_position_embeddings=longest,
            tie_word_embeddings=tied,
        )
    )
    spread_out(model)
    return model


def spread_out(model: "nn.Module") -> None:
    """Draw larger weights than by default, under which random models give all texts one embedding and one score."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def write_word_tokenizer(
    folder: Path, words: Sequence[str], *, unknown: str, post_processor: Any = None, **settings: Any
) -> None:
    """Write a tokenizer whose tokens are whole words between spaces.

    Args:
        folder: The model's.
        words: All words, in the order of their ids.
        unknown: The one that stands for others.
        post_processor: Of the tokenizers library; adds what a model wants around texts.
        settings: More of transformers' PreTrainedTokenizerFast.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def random_length(source: random.Random, *, median: float, spread: float, shortest: int, longest: int) -> int:
    """A lognormal number of tokens within limits; `spread` is that of the logarithm."""
    return min(max(round(exp(source.gauss(log(median), spread))), shortest), longest)
