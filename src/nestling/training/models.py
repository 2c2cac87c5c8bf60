"""The model of a recipe, as its settings say."""

from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from nestling.backends import Backend, prepare
from nestling.backends.optimizer import adamw
from nestling.checkpoint.state import trainable_tensors
from nestling.config import EmbedConfig, RerankConfig, require
from nestling.gpu import computing_dtype
from nestling.models.embedder import Embedder
from nestling.models.modules import load_head
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import AnySettings, EncoderSettings, read_settings
from nestling.models.token_model import TokenModel
from nestling.models.trainable import load_trainable

Config = TypeVar("Config", EmbedConfig, RerankConfig)


def load_embedder(config: EmbedConfig, row_instruction: str | None = None) -> Embedder:
    """The embedder that train/embed.py trains; `row_instruction` is what all rows have, if they have the same."""
    instruction = config.query_instruction or row_instruction
    embedder = load_trainable(
        Embedder,
        config.model,
        pooling=config.pooling,
        instruction=instruction,
        query_prompt=config.query_prompt,
        document_prompt=config.document_prompt,
        **arguments(config),
    )
    if config.gradient_checkpointing_length is not None:
        embedder.checkpoint_activations_above(config.gradient_checkpointing_length)
    return embedder


def load_reranker(config: RerankConfig, row_instruction: str | None = None) -> Reranker:
    """The reranker that train/rerank.py trains; `row_instruction` is what all rows have, if they have the same."""
    reranker = load_trainable(
        Reranker,
        config.model,
        settings=reranker_settings(config, config.model, row_instruction),
        share_prefix=config.share_prefix,
        new_head=config.seed,
        **arguments(config),
    )
    if config.gradient_checkpointing_length is not None:
        reranker.checkpoint_activations_above(config.gradient_checkpointing_length)
    return reranker


def reranker_settings(config: RerankConfig, source: str, row_instruction: str | None) -> AnySettings:
    """What the reranker of a run reads: as its settings say, else as the files of the model do.

    Raises:
        ValueError: They are those of a causal model, as 4 bits are, and it is an encoder.
    """
    files = read_settings(source)
    if isinstance(files, EncoderSettings):
        causal = {"prefix": config.prefix, "suffix": config.suffix, "answers": config.answers or None}
        given = [name for name, value in causal.items() if value is not None]
        require(not given, f"{', '.join(given)}: of the prompt of a causal model, and {source} is an encoder")
        require(
            config.loss.objective != "pointwise_vocabulary",
            f"loss.objective: pointwise_vocabulary is of causal models, and {source} is an encoder; use pointwise",
        )
        require(  # which would quantise the head and a pooler too, and these are trained in full
            config.tuning != "qlora",
            f"tuning: qlora holds the base of a causal model in 4 bits, and {source} is an encoder; use lora",
        )
        return replace(files, **config.reading)  # an encoder reads the instructions of rows if it is given one at all
    own = {} if row_instruction is None else {"instruction": row_instruction}
    return replace(files, **{**own, **config.reading})


def arguments(config: EmbedConfig | RerankConfig) -> dict[str, Any]:
    """Arguments of `load_trainable` that both kinds share."""
    return {
        "lora": None if config.tuning == "full" else asdict(config.lora),
        "quantised": config.tuning == "qlora",
        "precision": computing_dtype(config.precision),
        "trained_dtype": torch.bfloat16 if config.bf16_weights else torch.float32,
        "attn_implementation": config.attn_implementation,
        "dropout": config.dropout,
        "cpu": config.use_cpu,
    }


def untrained_tensors(config: EmbedConfig, embedder: Embedder) -> dict[str, Tensor]:
    """The `trainable_tensors` of an embedder in training as they were before it, on the CPU.

    Beside those of adapters that add nothing, of whose two matrices peft makes one 0, the modules behind the pooling.
    """
    if config.tuning == "full":
        return trainable_tensors(load_embedder(replace(config, use_cpu=True, gradient_checkpointing_length=None)))
    zero = (".lora_B.", ".lora_embedding_A.")
    head = load_head(embedder.source, embedder.head.settings).state_dict()
    before = {f"head.{name}": tensor for name, tensor in head.items()}
    return {
        name: torch.zeros_like(tensor) if any(each in f".{name}." for each in zero) else before.get(name, tensor)
        for name, tensor in trainable_tensors(embedder).items()
    }


def prepare_model(config: EmbedConfig | RerankConfig, accelerator: Accelerator, model: TokenModel) -> Backend:
    """The model on its device, with the optimizer that the settings name, in the backend of the launch."""
    optimizer = adamw(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        beta2=config.adam_beta2,
        optim=config.optim,
        seed=config.seed,
    )
    return prepare(
        accelerator,
        model,
        optimizer,
        queries_per_rank=config.batch_size // accelerator.num_processes,
        max_norm=config.max_grad_norm,
        optim=config.optim,
    )


def export_dtype(config: EmbedConfig | RerankConfig) -> torch.dtype | None:
    """Type of the weights in final/; None for the base's own."""
    return None if config.export_dtype is None else cast(torch.dtype, getattr(torch, config.export_dtype))


def for_export(config: Config, base: str | None) -> Config:
    """The settings of a run for loading its model on the CPU, to be exported.

    Args:
        config: Of the run.
        base: Where its base model is now, if it has moved.
    """
    tuning: Literal["lora", "full"] = (
        "full" if config.tuning == "full" else "lora"
    )  # a base in 4 bits is exported whole
    return replace(
        config,
        model=base or config.model,
        tuning=tuning,
        attn_implementation="auto",
        gradient_checkpointing_length=None,
        use_cpu=True,
    )
