"""A causal language model as a reranker: it answers yes or no to whether a document is relevant to a query."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase

from nestling.batches.packing import AnyChunk, Chunk, PackedChunk
from nestling.batches.pair_prompts import PairTokenizer
from nestling.models.adapter_merging import without_adapters
from nestling.models.answer_head import AnswerHead, replace_output_layer
from nestling.models.attention import VARLEN, model_class, resolve_attention
from nestling.models.independence import require_independent_texts
from nestling.models.model_sources import classifies, require_no_embedder
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.pooling import last_token
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import AnySettings, RerankerSettings, read_causal_settings
from nestling.models.token_model import is_decoder, load_backbone, read_config


class CausalReranker(Reranker):
    """A causal language model that answers yes or no.

    Args:
        backbone: A causal language model whose output layer is an `AnswerHead`, possibly wrapped by peft.
        tokenizer: Its tokenizer, a fast one.
        settings: Prompt format and length limits.
        source: The directory or hub id that it was loaded from.
        precision: float32, or bfloat16 to compute under autocast; the weights keep their dtype.
        share_prefix: Whether the tokens that the prompts of a query begin with run once for all its documents.

    Attributes:
        full_vocabulary: Whether `forward` returns log-probabilities over the full vocabulary instead of logits.
    """

    settings: RerankerSettings
    pairs: PairTokenizer

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: RerankerSettings,
        source: str,
        precision: torch.dtype = torch.float32,
        share_prefix: bool = True,
    ) -> None:
        super().__init__(backbone, tokenizer, source=source, precision=precision)
        self.settings = settings
        self.share_prefix = share_prefix
        self.full_vocabulary = False
        self.pairs = PairTokenizer(tokenizer, settings.prompt, yes=settings.yes, no=settings.no)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        precision: torch.dtype = torch.float32,
        attn_implementation: str = "auto",
        dropout: float | None = 0.0,
        settings: AnySettings | None = None,
        share_prefix: bool = True,
        new_head: int | None = None,
        cpu: bool = False,
        quantisation: BitsAndBytesConfig | None = None,
    ) -> Self:
        """Load a causal language model, one that already is a reranker or a base model that will be trained to be one.

        Args:
            model: Directory or hub id.
            dtype: Dtype of the weights in memory: float32 for training all of them, "auto" for the published dtype.
            precision: Dtype of the computation, float32 or bfloat16.
            attn_implementation: "auto" or "varlen" for packed prompts, which `share_prefix` needs, where the model can
                read them; or a name that transformers knows.
            dropout: Dropout probability in the model; None keeps the model's own.
            settings: Prompt format and length limits; by default those in its files, or Qwen3-Reranker's.
            share_prefix: Whether the tokens that the prompts of a query begin with run once.
            new_head: For encoders; not used.
            cpu: Whether the model will stay on the CPU even if there is a GPU.
            quantisation: How transformers quantises the weights; not at all by default.

        Raises:
            ValueError: The model is no causal language model, an answer has several tokens, or its logits are made in
                another way than `LogitTransform` knows.
        """
        config = read_config(model)
        require_causal(config, model)
        tokenizer = load_tokenizer(model)
        chosen = read_causal_settings(model) if settings is None else settings
        assert isinstance(chosen, RerankerSettings)
        pairs = PairTokenizer(tokenizer, chosen.prompt, yes=chosen.yes, no=chosen.no)  # before the weights are read
        kind = model_class(AutoModelForCausalLM, config)
        attention = partial(resolve_attention, precision=precision, kind=kind, cpu=cpu)
        packed = attn_implementation in ("auto", VARLEN)
        backbone = load_backbone(
            AutoModelForCausalLM,
            model,
            config,
            dtype=dtype,
            attn_implementation=attention(VARLEN if packed else attn_implementation),
            dropout=dropout,
            quantisation=quantisation,
        )
        replace_output_layer(cast(Any, backbone), no=pairs.no_id, yes=pairs.yes_id, source=str(model))
        reranker = cls(backbone, tokenizer, settings=chosen, source=str(model), precision=precision)
        require_independent_texts(reranker, packed=packed, padded_attention=attention("auto"))
        if not reranker.causal:
            raise ValueError(f"{model}: its attention is not causal, and a reranker reads its last token")
        reranker.share_prefix = share_prefix and reranker.padding_free
        return reranker

    @property
    def transformer(self) -> Any:
        """The transformers model without its head."""
        causal = without_adapters(self.backbone)
        return getattr(causal, causal.base_model_prefix)

    @property
    def width(self) -> int:
        return 2 if self.full_vocabulary else 1

    @property
    def head(self) -> AnswerHead:
        return cast(AnswerHead, without_adapters(self.backbone).get_output_embeddings())

    def described(self) -> dict[str, object]:
        settings = self.settings
        return {
            "prompt": repr(settings.prompt.body("{query}", "{document}")),
            "answers": f"{settings.yes!r} and {settings.no!r}",
        }

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """The logit of yes against no for each prompt, [n, 1], or with `full_vocabulary` log p of no and yes, [n, 2].

        The result is float32 (float64 for float64 weights).

        Args:
            chunk: The prompts.
            in_place: Whether the backward pass adds the gradient of the token embeddings in place, as
                `nestling.models.token_lookup` does.
        """
        with self.computing():
            hidden = self.hidden_states(chunk, in_place=in_place)
            if isinstance(chunk, Chunk):
                states = last_token(hidden, chunk.lengths)
            elif isinstance(chunk, PackedChunk):
                states = hidden[0, chunk.cu_seqlens[1:] - 1]
            else:
                states = hidden[0, chunk.last_positions]
            logits: Tensor = self.head(states, full_vocabulary=self.full_vocabulary, in_place=in_place)
            return logits


def require_causal(config: PretrainedConfig, model: str | Path) -> None:
    """Raise ValueError for a model that is no causal language model, or an embedder made of one."""
    require_no_embedder(model)
    if not is_decoder(config):
        raise ValueError(f"{model}: a reranker is a causal language model, and this is {config.model_type}")
    if classifies(config.architectures):
        raise ValueError(f"{model} is a classifier, without the words that it answers; load the causal directory")
