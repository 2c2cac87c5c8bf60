"""Models with fake tensors, so that a model of any size fits on any machine.

Fake tensors of torch (`FakeTensorMode`) have shape, dtype and device but no data; operations on them compute shape,
dtype and storage of their results only.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from nestling.models.adapters import attach_lora
from nestling.models.answer_head import AnswerHead
from nestling.models.attention import model_class, resolve_attention
from nestling.models.causal_reranker import CausalReranker
from nestling.models.embedder import Embedder
from nestling.models.encoder_reranker import EncoderReranker
from nestling.models.modules import Head
from nestling.models.token_model import TokenModel, dropouts, is_decoder
from nestling.training.memory import most_per_position


class FakeEmbedder(Embedder):
    """An `Embedder` without a tokenizer."""

    def __init__(self, backbone: nn.Module, precision: torch.dtype) -> None:
        TokenModel.__init__(self, backbone, cast(PreTrainedTokenizerBase, None), source="", precision=precision)
        self.pooling = "last" if self.causal else "mean"
        self.head = Head()


class FakeReranker(CausalReranker):
    """A `CausalReranker` without a tokenizer, whose answers are the first two tokens of the vocabulary."""

    def __init__(self, backbone: nn.Module, precision: torch.dtype, *, full_vocabulary: bool) -> None:
        TokenModel.__init__(self, backbone, cast(PreTrainedTokenizerBase, None), source="", precision=precision)
        causal = cast(Any, backbone)
        causal.set_output_embeddings(AnswerHead(causal.get_output_embeddings(), no=0, yes=1))
        self.full_vocabulary = full_vocabulary


class FakeEncoderReranker(EncoderReranker):
    """An `EncoderReranker` without a tokenizer, whose texts are all of one type."""

    def __init__(self, backbone: nn.Module, precision: torch.dtype) -> None:
        TokenModel.__init__(self, backbone, cast(PreTrainedTokenizerBase, None), source="", precision=precision)
        self.type_stride = 0
        self.train_head()


class FakeModel:
    """A model for training with fake tensors, set up like those of `nestling.models.trainable.load_trainable`.

    Args:
        config: Configuration of the model.
        dtype: Dtype of the weights, float32 for full fine-tuning.
        precision: Dtype of the computation.
        lora: Arguments of `attach_lora`; None for full fine-tuning.
        reranker: Whether the model is a reranker, not an embedder.
        full_vocabulary: Whether the loss of a reranker is over the whole vocabulary.
        gradient_checkpointing_length: Texts of more tokens recompute their activations; None for no recomputation.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        dtype: torch.dtype,
        precision: torch.dtype,
        lora: Mapping[str, Any] | None,
        reranker: bool = False,
        full_vocabulary: bool = False,
        gradient_checkpointing_length: int | None = None,
    ) -> None:
        config.update(dict.fromkeys(dropouts(config), 0.0))  # as recipes have it by default
        encodes = reranker and not is_decoder(config)
        if encodes:
            config.num_labels = 1
        kind: Any = AutoModelForSequenceClassification if encodes else AutoModelForCausalLM if reranker else AutoModel
        # In float32: flash attention saves as many activations as SDPA.
        attention = resolve_attention("auto", torch.float32, model_class(kind, config))
        with torch.device("meta"):
            backbone: nn.Module = kind.from_config(config, dtype=dtype, attn_implementation=attention)
            self.model: TokenModel = (
                FakeEncoderReranker(backbone, precision)
                if encodes
                else FakeReranker(backbone, precision, full_vocabulary=full_vocabulary)
                if reranker
                else FakeEmbedder(backbone, precision)
            )
            if lora is not None:
                self.model.backbone = attach_lora(backbone, **lora)
                self.model.train_head()
        self.mode = FakeTensorMode()
        with self.mode:  # after the adapters, since peft cannot attach them to fake tensors
            move_to_cpu(self.model)
        if gradient_checkpointing_length is not None:
            self.model.checkpoint_activations_above(gradient_checkpointing_length)

    def bytes_per_position(self, length: int, positions: int, *, sharded: bool = False) -> float:
        """Bytes of saved activations per position of a chunk, which training measures before its first step.

        Args:
            length: Tokens of the longest text.
            positions: Positions of the chunk.
            sharded: Whether the weights are sharded, so that every chunk saves its own casts of them.
        """
        self.model.train()
        with self.mode, self.model.computing(cache=False if sharded else None):
            return most_per_position(self.model, partial(self.model, in_place=True), length, positions)


def move_to_cpu(model: nn.Module) -> None:
    """Replace parameters and buffers on the meta device by ones on the CPU; tied parameters stay tied."""
    replacements: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor not in replacements:
                new = torch.empty(tensor.shape, dtype=tensor.dtype)
                trained = tensor.requires_grad
                replacements[tensor] = nn.Parameter(new, trained) if isinstance(tensor, nn.Parameter) else new
            setattr(module, name, replacements[tensor])
