"""Models that have the shapes of their weights and no weights, so that any of them fits on any machine.

torch's fake tensors: operations on them give the shape, type and storage of what they would give.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from nestling.models.adapters import attach_lora
from nestling.models.answer_head import AnswerHead
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.models.token_model import TokenModel, is_decoder
from nestling.training.memory import activation_bytes, sample_chunk

ATTENTION = "sdpa"  # flash attention keeps as much


class FakeEmbedder(Embedder):
    """As `Embedder`, without a tokenizer."""

    def __init__(self, backbone: nn.Module, precision: torch.dtype) -> None:
        TokenModel.__init__(self, backbone, cast(PreTrainedTokenizerBase, None), source="", precision=precision)
        self.pooling = "last" if is_decoder(self.config) else "mean"


class FakeReranker(Reranker):
    """As `Reranker`, without a tokenizer; the first two words are its answers."""

    def __init__(self, backbone: nn.Module, precision: torch.dtype, *, full_vocabulary: bool) -> None:
        TokenModel.__init__(self, backbone, cast(PreTrainedTokenizerBase, None), source="", precision=precision)
        causal = cast(Any, backbone)
        causal.set_output_embeddings(AnswerHead(causal.get_output_embeddings(), no=0, yes=1))
        self.full_vocabulary = full_vocabulary


class FakeModel:
    """A model for training, as `nestling.models.trainable.load_trainable` gives it.

    Args:
        shape: Its configuration.
        dtype: Of weights that are not trained, float32 where all are.
        precision: Of the computation.
        lora: Arguments of `attach_lora`; None trains all weights.
        reranker: Whether it is one, and not an embedder.
        full_vocabulary: Of a reranker: whether its loss is over all words.
        gradient_checkpointing_length: Texts of more tokens recompute their activations; None for none.
    """

    def __init__(
        self,
        shape: PretrainedConfig,
        *,
        dtype: torch.dtype,
        precision: torch.dtype,
        lora: Mapping[str, Any] | None,
        reranker: bool = False,
        full_vocabulary: bool = False,
        gradient_checkpointing_length: int | None = None,
    ) -> None:
        kind: Any = AutoModelForCausalLM if reranker else AutoModel
        with torch.device("meta"):
            backbone: nn.Module = kind.from_config(shape, dtype=dtype, attn_implementation=ATTENTION)
            self.model: TokenModel = (
                FakeReranker(backbone, precision, full_vocabulary=full_vocabulary)
                if reranker
                else FakeEmbedder(backbone, precision)
            )
            if lora is not None:
                self.model.backbone = attach_lora(backbone, **lora)
        self.mode = FakeTensorMode()
        with self.mode:  # peft does not put adapters on fake tensors, so that they come last
            put_on_cpu(self.model)
        if gradient_checkpointing_length is not None:
            self.model.checkpoint_activations_above(gradient_checkpointing_length)

    def bytes_a_position(self, length: int, positions: int, *, sharded: bool = False) -> float:
        """What training measures before its first step: the graph of a chunk, for each of its positions.

        Args:
            length: Tokens of the longest text.
            positions: Of the chunk.
            sharded: Whether the weights are, so that every graph has casts of its own of them.
        """
        self.model.train()
        with self.mode, self.model.computing(cache=False if sharded else None):
            device = torch.device("cpu")
            chunk = sample_chunk(min(length, positions), positions, self.model.config.vocab_size, device)
            return activation_bytes(self.model, partial(self.model, in_place=True), chunk) / chunk.positions


def put_on_cpu(model: nn.Module) -> None:
    """Give a model on the meta device parameters and buffers that are on the CPU; tied ones stay tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor not in made:
                new = torch.empty(tensor.shape, dtype=tensor.dtype)
                trained = tensor.requires_grad
                made[tensor] = nn.Parameter(new, trained) if isinstance(tensor, nn.Parameter) else new
            setattr(module, name, made[tensor])
