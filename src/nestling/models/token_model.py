"""What embedders and rerankers share: a transformer that reads chunks of tokens without padding to pay for."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from nestling.batches.packing import AnyChunk, Chunk
from nestling.heap import trim_heap
from nestling.models.attention import VARLEN
from nestling.models.token_lookup import look_up_in_place


class TokenModel(nn.Module):
    """A transformers model and what it reads with.

    Args:
        backbone: A transformers model, possibly wrapped by peft.
        tokenizer: Its tokenizer, fast.
        source: The directory or hub id that it came from.
        precision: float32, or bfloat16 to compute under autocast over the weights as they are.
    """

    def __init__(
        self, backbone: nn.Module, tokenizer: PreTrainedTokenizerBase, *, source: str, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.source = source
        self.precision = precision
        self._recomputable: list[GradientCheckpointingLayer] = []
        self._recompute_above = 0

    @property
    def config(self) -> PretrainedConfig:
        return cast(PretrainedConfig, self.backbone.config)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def padding_free(self) -> bool:
        """Whether it reads packed chunks: causal models with attention that knows where texts begin."""
        return bool(self.config._attn_implementation == VARLEN)

    @property
    def max_positions(self) -> int:
        """Tokens that the model can read."""
        return max_positions(self.config)

    @property
    def width(self) -> int:
        """Columns of what forward gives."""
        return int(self.config.hidden_size)

    @property
    def transformer(self) -> Any:
        """The model without head, to be called."""
        return self.backbone

    def computing(self, *, cache: bool | None = None) -> torch.autocast:
        """Autocast in the model's precision; around several forwards it casts each weight once, unless `cache` is off.

        None leaves that as an outer context has it, on without one.
        Casts that were made without gradients must not be around when gradients are wanted, nor after an update.
        """
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)

    def hidden_states(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """States of the last layer, [B, L, D], or [1, T, D] of packed texts; call it inside `computing`.

        With `in_place` the backward pass adds to the gradient of the token embeddings row by row (`token_lookup`).
        """
        for layer in self._recomputable:
            layer.gradient_checkpointing = chunk.longest > self._recompute_above
        table = cast(Any, self.backbone).get_input_embeddings()
        tokens = look_up_in_place(table, chunk.input_ids) if in_place else table(chunk.input_ids)
        arguments: dict[str, Any] = {"inputs_embeds": tokens, "attention_mask": None}
        causal = is_decoder(self.config)
        if causal:
            arguments["use_cache"] = False  # with a cache, or a mask, positions of packed texts are not honoured
        if not isinstance(chunk, Chunk):
            arguments |= chunk.attention_arguments()
        elif chunk.padded and not causal:
            # A causal model reads nothing from the padding on the right; without a mask attention takes its fast path.
            positions = torch.arange(chunk.input_ids.shape[1], device=chunk.input_ids.device)
            arguments["attention_mask"] = (positions < chunk.lengths[:, None]).long()
        hidden: Tensor = self.transformer(**arguments).last_hidden_state
        return hidden

    def recompute_above(self, length: int) -> None:
        """Layers keep no activations of texts longer than `length` tokens: the backward pass computes them again."""
        model = cast(Any, self.backbone)
        # transformers 5.2x renamed it
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self._recomputable = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
        self._recompute_above = length


def read_config(model: str | Path, subfolder: str = "") -> PretrainedConfig:
    """config.json of a directory or hub id; ValueError if there is none."""
    try:
        return cast(PretrainedConfig, AutoConfig.from_pretrained(model, subfolder=subfolder))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model {model}: not a directory with a config.json, and no id that the hub or its cache has: {reason}"
        ) from error


def max_positions(config: PretrainedConfig) -> int:
    """Tokens that a model can read; RoBERTa's kin number positions from behind the padding token's."""
    positions = int(getattr(config, "max_position_embeddings", 2**31))
    return positions - config.pad_token_id - 1 if "roberta" in config.model_type else positions


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether the model attends causally, told by its architecture's name."""
    names = config.architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) or config.model_type.startswith("qwen")


def load_backbone(
    kind: Any,
    model: str | Path,
    config: PretrainedConfig,
    *,
    subfolder: str = "",
    dtype: torch.dtype | str,
    attn_implementation: str,
    dropout: float | None,
    quantisation: BitsAndBytesConfig | None = None,
) -> nn.Module:
    """A model of one of transformers' Auto classes, its dropout set, its unused pooler head frozen."""
    own = {name: value for name, value in config.to_dict().items() if "dropout" in name and isinstance(value, float)}
    if dropout is not None:
        config.update(dict.fromkeys(own, dropout))
    backbone = kind.from_pretrained(
        model,
        config=config,
        subfolder=subfolder,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization_config=quantisation,
    )
    trim_heap()  # of what reading has freed, more than a small model's weights
    backbone.config.update(own)  # the exported config is the model's, not this run's
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and "pooler" not in name.split("."))
    return cast(nn.Module, backbone)


def require_fast(tokenizer: PreTrainedTokenizerBase, model: str | Path) -> None:
    """Raise ValueError for a tokenizer without fast form."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{model}: the tokenizer has no fast form (tokenizer.json); convert it with transformers first"
        )
