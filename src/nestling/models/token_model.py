"""The base class of embedders and rerankers: a transformer that computes hidden states of chunks of texts."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from nestling.batches.packing import AnyChunk, Chunk
from nestling.gpu import BF16_RESIDUAL, is_on
from nestling.heap import trim_heap
from nestling.models.attention import FLOAT32, VARLEN
from nestling.models.auto_classes import ENCODER_OF
from nestling.models.checked_loading import MayLack, is_pooler, load_weights, loading
from nestling.models.json_files import FETCH, read_object
from nestling.models.model_sources import require_config_file, require_model_source, require_no_adapter
from nestling.models.remote_code import is_trusted, require_arguments, require_trust
from nestling.models.token_lookup import look_up_in_place

# Values of config.json that are above 0.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")

# Types of models that number positions from pad_token_id + 1, as RoBERTa does.
POSITIONS_BEHIND_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


class TokenModel(nn.Module):
    """A transformers model with its tokenizer.

    Args:
        backbone: A transformers model, possibly wrapped by peft.
        tokenizer: Its tokenizer, a fast one.
        source: The directory or hub id that it was loaded from.
        precision: float32, or bfloat16 to compute under autocast; the weights keep their dtype.

    Attributes:
        causal: Whether tokens depend on none after them: by its config, until `nestling.models.independence` has tried.
    """

    def __init__(
        self, backbone: nn.Module, tokenizer: PreTrainedTokenizerBase, *, source: str, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.source = source
        self.precision = precision
        self.causal = is_causal(self.config)
        self._checkpointing_layers: list[GradientCheckpointingLayer] = []
        self._checkpoint_above = 0

    @property
    def config(self) -> PretrainedConfig:
        return cast(PretrainedConfig, self.backbone.config)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def padding_free(self) -> bool:
        """Whether it reads packed chunks: models with the attention `varlen`."""
        return bool(self.config._attn_implementation == VARLEN)

    @property
    def max_positions(self) -> int:
        """The longest text that the model can read, in tokens."""
        return max_positions(self.config)

    @property
    def width(self) -> int:
        """Columns of the output of `forward`."""
        return int(self.config.hidden_size)

    @property
    def _masks_by_layer_type(self) -> bool:
        """Whether the transformers model takes a mask for each type of layer, and its attention needs none."""
        return (
            self.causal
            and self.config.model_type in ("qwen2", "qwen3")
            and set(self.config.layer_types) == {"full_attention"}
            and self.config._attn_implementation in ("sdpa", FLOAT32, VARLEN, "flash_attention_2")
        )

    @property
    def transformer(self) -> Any:
        """The transformers model without its head."""
        return self.backbone

    def computing(self, *, cache: bool | None = None) -> torch.autocast:
        """An autocast context in the model's precision.

        Inside one context, autocast's weight cache casts each weight to bfloat16 once, for all forward passes. Cached
        casts that were made under `torch.no_grad` have no gradient, and those made before an optimizer step are of the
        old weights: leave the context before gradients are needed or weights change.

        Args:
            cache: Whether to use the weight cache; None keeps the setting of the enclosing context, on by default.
        """
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache)

    def hidden_states(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """Hidden states of the last layer, [B, L, D], or [1, T, D] of packed texts; call it inside `computing`.

        Args:
            chunk: The texts.
            in_place: Whether the backward pass adds the gradient of the token embeddings in place, as
                `nestling.models.token_lookup` does.
        """
        hidden: Tensor = self.transformer(**self.inputs(chunk, in_place=in_place)).last_hidden_state
        return hidden

    def inputs(self, chunk: AnyChunk, *, in_place: bool = False) -> dict[str, Any]:
        """Keyword arguments of the transformers model for a chunk."""
        for layer in self._checkpointing_layers:
            layer.gradient_checkpointing = chunk.max_seqlen > self._checkpoint_above
        table = cast(Any, self.backbone).get_input_embeddings()
        # Without a mask by type of layer, transformers looks for packed texts, and waits for the GPU to tell.
        mask = {"full_attention": None} if self._masks_by_layer_type else None
        arguments: dict[str, Any] = {"attention_mask": mask}
        if type(table) is nn.Embedding:
            tokens = look_up_in_place(table, chunk.input_ids) if in_place else table(chunk.input_ids)
            rounded = self.precision == torch.bfloat16 and is_on(BF16_RESIDUAL)
            arguments["inputs_embeds"] = tokens.bfloat16() if rounded else tokens
        else:  # one that scales its output or has an adapter; Gemma3n has tables for each layer besides
            arguments["input_ids"] = chunk.input_ids
        if is_decoder(self.config):
            arguments["use_cache"] = False  # with a cache, or a mask, transformers mixes packed texts
        if not isinstance(chunk, Chunk):
            arguments |= chunk.attention_arguments()
            if first := first_position(self.config):
                arguments["position_ids"] = chunk.position_ids + first
        elif chunk.padded and not self.causal:
            # Only here: tokens of a causal model do not attend to padding on their right, and SDPA is faster unmasked.
            positions = torch.arange(chunk.input_ids.shape[1], device=chunk.input_ids.device)
            arguments["attention_mask"] = (positions < chunk.lengths[:, None]).long()
        return arguments

    def train_head(self) -> None:
        """Train what is trained in full inside of the backbone, whatever adapters there are: nothing by default."""

    def checkpoint_activations_above(self, length: int) -> None:
        """Use activation checkpointing for texts longer than `length` tokens: layers recompute their activations.

        Raises:
            ValueError: The model can read texts that are longer, and transformers has no checkpointing for it.
        """
        model = cast(Any, self.backbone)
        if not self.transformer.supports_gradient_checkpointing:
            if length < self.max_positions:
                raise ValueError(
                    f"gradient_checkpointing_length: {length}: {self.config.model_type} has no gradient "
                    "checkpointing in transformers; set it to null, and chunk_tokens lower if memory runs out"
                )
            return
        # transformers 5.2x renamed gradient_checkpointing_enable.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self._checkpointing_layers = [
            module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        self._checkpoint_above = length

    @property
    def longest_without_checkpointing(self) -> int:
        """Tokens of the longest text whose activations are kept by all layers."""
        return self._checkpoint_above if self._checkpointing_layers else sys.maxsize

    @contextmanager
    def checkpointing_as_of(self, length: int) -> Iterator[None]:
        """Use activation checkpointing for all texts if texts of `length` tokens are to have it, else for none."""
        above = self._checkpoint_above
        self._checkpoint_above = 0 if length > above else sys.maxsize
        try:
            yield
        finally:
            self._checkpoint_above = above


def read_config(model: str | Path, subfolder: str = "") -> PretrainedConfig:
    """The config.json of a directory or hub id.

    Raises:
        ValueError: There is none, it is damaged, or its class comes with the model and is not trusted.
    """
    require_model_source(model)
    require_config_file(model, subfolder)
    require_trust(str(model), subfolder)
    try:
        with loading(model, "configuration", subfolder):
            config: PretrainedConfig = AutoConfig.from_pretrained(
                model, subfolder=subfolder, trust_remote_code=is_trusted(model)
            )
    except ValueError as error:
        if not isinstance(error.__cause__, OSError):
            if not is_trusted(model):
                require_known_type(model, subfolder)
            raise
        require_no_adapter(model)
        reason = str(error.__cause__).splitlines()[0]
        raise ValueError(
            f"model {model}: not a directory with a config.json, and no id that the hub or its cache has: {reason}"
        ) from error
    require_sound_values(model, config)
    return config


def require_known_type(model: str | Path, subfolder: str) -> None:
    """Raise ValueError if transformers does not know the type of model that a config.json names."""
    name = str(Path(subfolder, "config.json"))
    kind = read_object(str(model), name).get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{model}/{name}: model_type is {kind!r}, expected one that transformers {transformers.__version__} knows; "
            "a newer release may"
        )


def require_sound_values(model: str | Path, config: PretrainedConfig) -> None:
    """Raise ValueError for values of a config.json that transformers takes and no model can have."""
    for name in SIZES:
        size = getattr(config, name, None)
        if size is not None and not (isinstance(size, int) and size > 0):
            raise ValueError(f"{model}/config.json: {name} is {size!r}, expected a whole number above 0; {FETCH}")
    quantised = getattr(config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING and method != "bitsandbytes":
        raise ValueError(
            f"{model}/config.json: its weights are quantised by {method!r}, which transformers does not know"
        )
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{model}/config.json: architectures is {names!r}, expected a list of names; {FETCH}")


def max_positions(config: PretrainedConfig) -> int:
    """The longest text that a model can read, in tokens."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31) - first_position(config)


def first_position(config: PretrainedConfig) -> int:
    """The number that a model has for the position of a text's first token."""
    if config.model_type not in POSITIONS_BEHIND_PADDING:
        return 0
    return 1 + (1 if config.model_type == "mpnet" else int(config.pad_token_id))  # MPNet ignores its own


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether the model is a causal language model, with a head or without: transformers has such models of its type.

    Of the types of BERT and its kin it has both, and masked ones count; those are decoders where their files say so.
    """
    names, kind = config.architectures or [], config.model_type
    named = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return named or (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def is_causal(config: PretrainedConfig) -> bool:
    """Whether tokens depend on none after them, by the config: of some decoders it takes the causal mask away."""
    bidirectional = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    return is_decoder(config) and not bidirectional


def require_one_stack(config: PretrainedConfig, model: str | Path) -> None:
    """Raise ValueError for a model of an encoder and a decoder, of which each text would need an input for both.

    Those whose encoder is loaded alone are none.
    """
    if config.is_encoder_decoder and config.model_type not in ENCODER_OF:
        raise ValueError(
            f"{model}: {config.model_type} has an encoder and a decoder; expected a model of one of them, such as BERT "
            "or Qwen3"
        )


def dropouts(config: PretrainedConfig) -> dict[str, float]:
    """Probabilities of dropout by name, such as GPT-2's `resid_pdrop` and OPT's `layerdrop`."""
    return {name: value for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}


def load_backbone(
    auto_class: Any,
    model: str | Path,
    config: PretrainedConfig,
    *,
    subfolder: str = "",
    dtype: torch.dtype | str,
    attn_implementation: str,
    dropout: float | None,
    quantisation: BitsAndBytesConfig | None = None,
    may_lack: MayLack = is_pooler,
) -> nn.Module:
    """Load a model with one of transformers' Auto classes, and freeze the pooler head, which embedders do not use.

    Args:
        auto_class: `AutoModel`, `AutoModelForCausalLM` or `AutoModelForSequenceClassification`.
        model: Directory or hub id.
        config: The model's config; its dropout probabilities are changed.
        subfolder: Folder of the transformer inside the directory.
        dtype: Dtype of the weights, or "auto" for the published dtype.
        attention: Name of the attention implementation.
        dropout: Dropout probability; None keeps the model's own.
        quantisation: How to quantise the weights; not at all by default.
        may_lack: Which weights need not be in the files.

    Raises:
        ValueError: The weights are damaged, of another shape than config.json says, or incomplete; or the model's own
            code does not take what Nestling gives it.
    """
    own = dropouts(config)
    if dropout is not None:
        config.update(dict.fromkeys(own, dropout))
    backbone = load_weights(
        auto_class,
        model,
        config=config,
        subfolder=subfolder,
        dtype=dtype,
        attn_implementation=attn_implementation,
        may_lack=may_lack,
        quantization_config=quantisation,
        trust_remote_code=is_trusted(model),
    )
    require_arguments(model, backbone)
    trim_heap()  # loading has freed more memory than a small model's weights take
    backbone.config.update(own)  # an exported config must have the model's own dropout, not that of this run
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and not is_pooler(name))
    return backbone
