"""The embedding model: a transformer with pooling and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerBase

from nestling.batches.packing import AnyChunk, Chunk, PackedChunk
from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.config import require
from nestling.models.attention import VARLEN, model_class, resolve_attention
from nestling.models.auto_classes import text_model_class
from nestling.models.encoding import encode_texts
from nestling.models.independence import require_independent_texts
from nestling.models.json_files import read_modules, read_object, value_of
from nestling.models.model_prompts import choose_prompts
from nestling.models.model_sources import require_embedder, require_model_source
from nestling.models.model_tokenizer import load_tokenizer
from nestling.models.modules import Head, ModuleSettings, load_head, output_width, read_head, require_widths
from nestling.models.pooling import Pooling, modes_of, pool_packed, pool_padded
from nestling.models.pooling_file import read_pooling
from nestling.models.token_model import (
    TokenModel,
    is_causal,
    load_backbone,
    max_positions,
    read_config,
    require_one_stack,
)
from nestling.records.record import Kind


@dataclass(frozen=True)
class ModelFiles:
    """Settings in a model's sentence-transformers files; defaults for a model without such files.

    Args:
        pooling: Its pooling; None if no file says.
        normalize: Whether its embeddings are normalised.
        subfolder: Folder of the transformer inside the model's directory.
        pool_prompt: Whether pooling reads the tokens of a text's prompt.
        head: The modules behind the pooling, but for a Normalize at the end.
    """

    pooling: Pooling | None = None
    normalize: bool = True
    subfolder: str = ""
    pool_prompt: bool = True
    head: tuple[ModuleSettings, ...] = ()


class Embedder(TokenModel):
    """An embedding model.

    Args:
        backbone: A transformers model without head, possibly wrapped by peft.
        tokenizer: Its tokenizer, a fast one.
        pooling: How the hidden states of a text become one embedding.
        prompts: Prompts of queries and documents.
        source: The directory or hub id that it was loaded from.
        head: The modules behind the pooling; none by default.
        pool_prompt: Whether pooling reads the tokens of a text's prompt.
        normalize: Whether the published model normalises its embeddings; `encode` always does.
        append_end: Whether last-token pooling has an end token appended where the tokenizer appends none.
        precision: float32, or bfloat16 to compute under autocast; the weights keep their dtype.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: Pooling,
        prompts: Prompts,
        source: str,
        head: Head | None = None,
        pool_prompt: bool = True,
        normalize: bool = True,
        append_end: bool = True,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(backbone, tokenizer, source=source, precision=precision)
        self.pooling: Pooling = pooling
        self.prompts = prompts
        self.normalize = normalize
        self.head = Head() if head is None else head
        self.text_tokenizer = TextTokenizer(
            tokenizer, require_end=reads_end(pooling), append_end=append_end, pool_prompt=pool_prompt
        )
        end, table = self.text_tokenizer.end_id, cast(Any, backbone).get_input_embeddings()
        if end is not None and getattr(table, "padding_idx", None) == end:
            table.padding_idx = None  # torch gives that row no gradient, and here it is that of every text's end

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        precision: torch.dtype = torch.float32,
        attn_implementation: str = "auto",
        pooling: Pooling | None = None,
        dropout: float | None = 0.0,
        instruction: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        cpu: bool = False,
        quantisation: BitsAndBytesConfig | None = None,
        files: ModelFiles | None = None,
    ) -> Self:
        """Load a directory or hub id; the settings in its sentence-transformers files, if it has any, are used.

        Args:
            model: Directory or hub id.
            dtype: Dtype of the weights in memory: float32 for training all of them, "auto" for the published dtype.
            precision: Dtype of the computation, float32 or bfloat16.
            attn_implementation: "sdpa", "eager", "flash_attention_2", "varlen" to pack texts where the model can read
                them so, or "auto" for the fastest that the model has and pads.
            pooling: Overrides the pooling in the files; by default, without files, causal models use the last token and
                others the mean.
            dropout: Dropout probability in the model; None keeps the model's own.
            instruction: Default instruction of queries, which replaces the model's own query prompt.
            query_prompt: Literal prompt of queries; `{instruction}` in it stands for a query's instruction.
            document_prompt: Literal prompt of documents.
            cpu: Whether the model will stay on the CPU even if there is a GPU.
            quantisation: How transformers quantises the weights; not at all by default.
            files: Settings in place of those in its sentence-transformers files.

        Raises:
            ValueError: The model has a module, pooling or tokenizer that Nestling cannot reproduce exactly, has no such
                attention, or mixes a text with its padding.
        """
        files = files or read_model_files(str(model))
        config = read_config(model, files.subfolder)
        require_one_stack(config, model)
        require_embedder(model, config, pooled=files.pooling is not None)
        causal = is_causal(config)
        chosen = pooling or files.pooling or ("last" if causal else "mean")
        require_widths(str(model), files.head, pooled_width(config, chosen))
        prompts = choose_prompts(
            model,
            decoder=causal,
            instruction=instruction,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
        )
        auto_class = text_model_class(config)
        attention = partial(resolve_attention, precision=precision, kind=model_class(auto_class, config), cpu=cpu)
        tokenizer = load_tokenizer(model, files.subfolder)  # before the weights, which take longest
        head = load_head(str(model), files.head, dropout)
        backbone = load_backbone(
            auto_class,
            model,
            config,
            subfolder=files.subfolder,
            dtype=dtype,
            attn_implementation=attention(attn_implementation),
            dropout=dropout,
            quantisation=quantisation,
        )
        embedder = cls(
            backbone,
            tokenizer,
            pooling=chosen,
            prompts=prompts,
            source=str(model),
            head=head,
            pool_prompt=files.pool_prompt,
            normalize=files.normalize,
            append_end=may_append_end(str(model), files, chosen),
            precision=precision,
        )
        packed = attn_implementation == VARLEN
        require_independent_texts(embedder, packed=packed, padded_attention=attention("auto"))
        return embedder

    @property
    def width(self) -> int:
        return output_width(self.head.settings, pooled_width(self.config, self.pooling))

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.width

    @property
    def max_seq_length(self) -> int:
        """Tokens at which its directory cuts texts, prompt and special tokens included, as in sentence-transformers."""
        own = read_max_length(self.source) or int(self.tokenizer.model_max_length)
        return min(own, self.max_positions)

    def forward(self, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
        """Embeddings of all dimensions, [B, D] float32, not normalised.

        Args:
            chunk: The texts.
            in_place: Whether the backward pass adds the gradient of the token embeddings in place, as
                `nestling.models.token_lookup` does.
        """
        with self.computing():
            hidden = self.hidden_states(chunk, in_place=in_place)
            pooled: Tensor = self.head(self.pool(hidden, chunk))
            return pooled

    def pool(self, hidden: Tensor, chunk: AnyChunk) -> Tensor:
        """The pooled hidden states of a chunk, which the head has not seen yet: [B, L, D] or [1, T, D] -> [B, M D]."""
        if isinstance(chunk, PackedChunk):
            return pool_packed(hidden, chunk.cu_seqlens, self.pooling, chunk.pooled_from)
        assert isinstance(chunk, Chunk)  # others are of rerankers
        return pool_padded(hidden, chunk.lengths, self.pooling, chunk.pooled_from)

    def prefix(self, kind: Kind, instruction: str | None = None) -> str:
        """The prompt that is put before a text."""
        return self.prompts.query(instruction) if kind == "query" else self.prompts.document

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind,
        max_length: int,
        instruction: str | None = None,
        tokens_per_batch: int | None = None,
        progress: str | None = None,
    ) -> Tensor:
        """Normalised embeddings, [n, D] float32 on the CPU; arguments and errors as in `encode_texts`."""
        result = torch.empty(len(texts), self.dim)
        for rows, embeddings in encode_texts(
            self,
            texts,
            prefix=self.prefix(kind, instruction),
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        ):
            result[rows] = embeddings
        return result


def reads_end(pooling: Pooling) -> bool:
    """Whether a pooling reads the last token, so that a text must end in a special one."""
    return "last" in modes_of(pooling)


def pooled_width(config: PretrainedConfig, pooling: Pooling) -> int:
    """Dimensions behind the pooling."""
    return len(modes_of(pooling)) * int(config.hidden_size)


def read_model_files(model: str) -> ModelFiles:
    """The settings in the sentence-transformers files of a directory or hub id, if it has any.

    Raises:
        ValueError: It is no model, a file is damaged, or it has modules that are not supported.
    """
    require_model_source(model)
    return read_module_files(model)


def read_module_files(model: str) -> ModelFiles:
    """As `read_model_files`, also of an adapter's folder."""
    modules = read_modules(model)
    if modules is None:
        return ModelFiles()
    folders = {each.kind: each.folder for each in modules}
    if "LogitScore" in folders:
        raise ValueError(f"{model}/modules.json: LogitScore makes it a reranker; expected an embedder")
    head = read_head(model, modules)
    last = max((i for i, each in enumerate(head, 1) if each.kind != "Normalize"), default=0)
    pooling, pool_prompt = None, True
    if "Pooling" in folders:
        pooling, pool_prompt = read_pooling(model, f"{folders['Pooling']}/config.json")
    return ModelFiles(
        pooling=pooling,
        normalize=last < len(head),
        subfolder=folders.get("Transformer", ""),
        pool_prompt=pool_prompt,
        head=head[:last],
    )


def may_append_end(model: str, files: ModelFiles, pooling: Pooling) -> bool:
    """Whether texts get an end token where the tokenizer appends none.

    Not if the model's files ask for last-token pooling, and so for the last token that the tokenizer gives, unless they
    also ask for an end token: transformers 5 heeds `add_eos_token` no more, and publishers had it in mind.
    """
    settings = read_object(model, str(PurePosixPath(files.subfolder) / "tokenizer_config.json"))
    return not (files.pooling == pooling and reads_end(pooling)) or settings.get("add_eos_token") is True


def read_width(model: str | Path, pooling: Pooling | None = None) -> int:
    """Dimensions of a model's embeddings, read without its weights; ValueError if there is no config.json.

    `pooling` is one that replaces the model's own.
    """
    files = read_model_files(str(model))
    config = read_config(model, files.subfolder)
    return output_width(files.head, pooled_width(config, pooling or files.pooling or "mean"))


def read_dims(model: str) -> list[int]:
    """The full dimension of a model's embeddings, then the Matryoshka dimensions that its config.json names."""
    keys = read_config(model, read_model_files(model).subfolder).to_dict()
    return sorted({read_width(model), *(keys.get("matryoshka_dimensions") or [])}, reverse=True)


def require_lengths(model: str, **lengths: int | None) -> None:
    """Raise ValueError for the setting of a maximum length, given by name, that is above what a model reads."""
    limit = max_positions(read_config(model, read_model_files(model).subfolder))
    for name, length in lengths.items():
        require((length or 0) <= limit, f"--{name} {length}: {model} reads at most {limit} tokens; give a lower one")


def read_max_length(model: str) -> int | None:
    """Most tokens of a text, in the transformer's sentence_bert_config.json; None if no file says."""
    name = str(PurePosixPath(read_model_files(model).subfolder) / "sentence_bert_config.json")
    return value_of(f"{model}/{name}", read_object(model, name), "max_seq_length", int)
