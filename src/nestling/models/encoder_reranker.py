"""An encoder as a reranker: a transformers model for sequence classification with one label, a cross-encoder."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from nestling.batches.encoder_pairs import EncoderPairs, split_types
from nestling.batches.packing import AnyChunk, Chunk, PackedChunk, prompts_to_chunk
from nestling.models.adapter_merging import without_adapters
from nestling.models.attention import VARLEN, model_class, resolve_attention
from nestling.models.checked_loading import lacks_memory
from nestling.models.classifier_head import compute_output_in_float32, head_parameters, in_head, nothing, stack_of
from nestling.models.encoding import evaluating
from nestling.models.independence import can_be_tried, require_independent_texts
from nestling.models.json_files import read_object, value_of
from nestling.models.model_sources import classifies
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.remote_code import is_trusted
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import AnySettings, EncoderSettings, read_encoder_settings
from nestling.models.token_model import load_backbone, max_positions, read_config, require_one_stack

# Largest difference of logits, as a fraction of the largest, of pairs that are packed and that are padded: rounding.
SAME_LOGITS = 1e-4


class EncoderReranker(Reranker):
    """A model for sequence classification with one label, which reads a query and a document as a pair of texts.

    Args:
        backbone: The transformers model with its head, possibly wrapped by peft.
        tokenizer: Its tokenizer, a fast one.
        settings: Instruction and length limits.
        max_length: Tokens of a pair that it reads, at most.
        source: The directory or hub id that it was loaded from.
        precision: float32, or bfloat16 to compute under autocast; the weights keep their dtype.
        new_head: Whether its head has not been trained yet.
    """

    settings: EncoderSettings
    pairs: EncoderPairs

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: EncoderSettings,
        max_length: int,
        source: str,
        precision: torch.dtype = torch.float32,
        new_head: bool = False,
    ) -> None:
        super().__init__(backbone, tokenizer, source=source, precision=precision)
        self.settings = settings
        self.new_head = new_head
        self.share_prefix = self.full_vocabulary = False
        self.type_stride = int(self.config.vocab_size) if reads_types(backbone, tokenizer) else 0
        self.pairs = EncoderPairs(
            tokenizer, instruction=settings.instruction, max_length=max_length, type_stride=self.type_stride
        )
        compute_output_in_float32(without_adapters(backbone))
        for parameter in head_parameters(without_adapters(backbone)):
            parameter.requires_grad_(True)  # a pooler's too, which embedders do not use

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
        """Load a cross-encoder, or with `new_head` any encoder that transformers has a classifier for.

        Args:
            model: Directory or hub id; a classifier of one label keeps its head.
            dtype: Dtype of the weights in memory: float32 for training all of them, "auto" for the published dtype.
            precision: Dtype of the computation, float32 or bfloat16.
            attn_implementation: "auto" or "varlen" for packed pairs where the model can read them, or a name that
                transformers knows.
            dropout: Dropout probability in the model; None keeps the model's own.
            settings: Instruction and length limits; by default those in its files.
            share_prefix: For causal models; pairs of an encoder share no states.
            new_head: Seed of the head that a model without one gets, to be trained; by default it is refused.
            cpu: Whether the model will stay on the CPU even if there is a GPU.
            quantisation: How transformers quantises the weights; not at all by default.

        Raises:
            ValueError: The model is no classifier of one label, and none can be made of it.
        """
        config = read_config(model)
        require_encoder(config, model, new_head=new_head is not None)
        made = not classifies(config.architectures)
        tokenizer = load_tokenizer(model)
        chosen = read_encoder_settings(model, config) if settings is None else settings
        assert isinstance(chosen, EncoderSettings)
        config.num_labels = 1
        kind = model_class(AutoModelForSequenceClassification, config)
        attention = partial(resolve_attention, precision=precision, kind=kind, cpu=cpu)
        packed = attn_implementation in ("auto", VARLEN)
        with seeded(new_head or 0):
            backbone = load_backbone(
                AutoModelForSequenceClassification,
                model,
                config,
                dtype=dtype,
                attn_implementation=attention(VARLEN if packed else attn_implementation),
                dropout=dropout,
                quantisation=quantisation,
                may_lack=in_head(kind) if made else nothing,
            )
        reranker = cls(
            backbone,
            tokenizer,
            settings=chosen,
            max_length=read_pair_length(model, config, tokenizer),
            source=str(model),
            precision=precision,
            new_head=made,
        )
        require_independent_texts(reranker, packed=attn_implementation == VARLEN, padded_attention=attention("auto"))
        require_scores(reranker, attention("auto"))
        return reranker

    @property
    def max_length(self) -> int:
        return self.pairs.max_length

    @property
    def classifier(self) -> Any:
        """The transformers model with its head."""
        return without_adapters(self.backbone)

    @property
    def transformer(self) -> Any:
        """The transformers model without its head."""
        return getattr(self.classifier, self.classifier.base_model_prefix)

    def inputs(self, chunk: AnyChunk, *, in_place: bool = False) -> dict[str, Any]:
        if not self.type_stride:
            return super().inputs(chunk, in_place=in_place)
        tokens, types = split_types(chunk.input_ids, self.type_stride)
        return super().inputs(replace(chunk, input_ids=tokens), in_place=in_place) | {"token_type_ids": types}

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        with self.computing(), nullcontext() if isinstance(chunk, Chunk) else self._first_tokens(chunk):
            logits: Tensor = self.classifier(**self.inputs(chunk, in_place=in_place)).logits
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def described(self) -> dict[str, object]:
        first = f"{self.pairs.before_query()}{{query}}"
        return {
            "pair": f"{first!r} and '{{document}}', up to {self.pairs.max_length} tokens by the tokenizer's template",
            "instruction": repr(self.settings.instruction) if self.settings.instruction else "none, of rows neither",
            "head": "new, trained in full from random weights" if self.new_head else "the model's own, trained in full",
        }

    def scores_of(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.settings.activation == "sigmoid" else logits

    def train_head(self) -> None:
        """Train the head in full, in float32, beside adapters of the transformer."""
        for parameter in head_parameters(self.classifier):
            parameter.requires_grad_(True)
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()

    @contextmanager
    def _first_tokens(self, chunk: AnyChunk) -> Iterator[None]:
        """A context in which the head gets the first state of each packed text, [n, 1, D], which is all that it reads.

        What the layers are in hands these on, not the last layer, which activation checkpointing runs again later.
        """
        assert not isinstance(chunk, Chunk)
        starts = (chunk.cu_seqlens if isinstance(chunk, PackedChunk) else chunk.cu_seqlens_q)[:-1]

        def pick(module: nn.Module, inputs: object, output: Any) -> Any:
            states = output[0][0][starts][:, None]
            if not isinstance(output, ModelOutput):
                return (states, *output[1:])
            output.last_hidden_state = states
            return output

        handle = stack_of(self.transformer).register_forward_hook(pick)
        try:
            yield
        finally:
            handle.remove()


def require_encoder(config: PretrainedConfig, model: str | Path, *, new_head: bool) -> None:
    """Raise ValueError for a model that scores no pairs, or with `new_head`, of which no such one can be made."""
    require_one_stack(config, model)
    kind = config.model_type
    if classifies(config.architectures):
        if config.num_labels != 1:
            raise ValueError(f"{model}: a classifier of {config.num_labels} labels, and a reranker has one")
        return
    if not new_head:
        raise ValueError(
            f"{model}: {kind} without a head that scores pairs; expected a reranker, which train/rerank.py makes of it"
        )
    if model_class(AutoModelForSequenceClassification, config) is None and not is_trusted(model):
        raise ValueError(
            f"{model}: transformers has no sequence classification for {kind} models, which a reranker made of an "
            "encoder is; take another encoder, such as BERT or ModernBERT"
        )


def read_pair_length(model: str | Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a pair, as sentence-transformers cuts those of a cross-encoder."""
    own = None
    if classifies(config.architectures):  # else the length of texts that it embeds
        name = "sentence_bert_config.json"
        own = value_of(f"{model}/{name}", read_object(str(model), name), "max_seq_length", int)
    return min(own or int(tokenizer.model_max_length), max_positions(config))


def reads_types(backbone: nn.Module, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model reads token types, and its tokenizer gives them."""
    takes = signature(without_adapters(backbone).forward).parameters
    return "token_type_ids" in takes and "token_type_ids" in tokenizer.model_input_names


def require_scores(reranker: EncoderReranker, padded_attention: str) -> None:
    """Try a model on two short pairs; have it read padded ones if its head gives packed ones other logits.

    Some heads do not read the first token, or not it alone.

    Args:
        reranker: The model, just loaded.
        padded_attention: Name of the attention implementation for padded chunks.

    Raises:
        ValueError: Its head cannot be run on token embeddings.
    """
    if not can_be_tried(reranker):
        reranker.classifier.set_attn_implementation(padded_attention)
        return
    try:
        expected = try_pairs(reranker, packed=False)
    except Exception as error:  # whatever the model's code raises
        if lacks_memory(error):
            raise
        raise ValueError(
            f"{reranker.source}: {type(reranker.classifier).__name__} cannot be run by token embeddings "
            f"({type(error).__name__}: {shorten(str(error), 200)}); take a model of another architecture"
        ) from error
    if reranker.padding_free and not same_logits(reranker, expected):
        reranker.classifier.set_attn_implementation(padded_attention)


def same_logits(reranker: EncoderReranker, expected: Tensor) -> bool:
    """Whether packed pairs have the logits that are expected."""
    try:
        off = (try_pairs(reranker, packed=True) - expected).abs().max()
    except (RuntimeError, ValueError, IndexError, TypeError):  # of a head that finds no padding, say
        return False
    return bool(off <= SAME_LOGITS * expected.abs().max().clamp(min=1))


def try_pairs(reranker: EncoderReranker, *, packed: bool) -> Tensor:
    """[2, 1] logits of two texts of five and three tokens."""
    size = int(reranker.config.vocab_size)
    ids = [[i % size for i in range(start, start + length)] for start, length in ((11, 5), (31, 3))]
    chunk = prompts_to_chunk([ids], share_prefix=False, padding_free=packed).to(reranker.device)
    with torch.no_grad(), evaluating(reranker):
        return cast(Tensor, reranker(chunk))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch draws numbers that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
