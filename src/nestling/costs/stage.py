"""Estimate of the memory and operations of a stage with one way of launching it."""

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TypeVar

import torch

from nestling.backends.optimizer import require_whole
from nestling.backends.sizes import StateFractions, trained_bytes
from nestling.batches.sampling import round_up
from nestling.config import EmbedConfig, LoraConfig, MineConfig, RerankConfig, TrainingConfig, require
from nestling.config.costs import LaunchCosts, ScriptName, StageCosts
from nestling.costs.fake_models import FakeModel
from nestling.costs.launches import free_memory, state_fractions
from nestling.costs.model_configs import model_config_of
from nestling.costs.operations import Workload, operations_of
from nestling.costs.recipes import read_recipe
from nestling.gpu import computing_dtype
from nestling.models.token_model import TokenModel
from nestling.training.memory import MemoryEstimate, estimate, kept_bytes, room_for_activations

Training = TypeVar("Training", EmbedConfig, RerankConfig)

CHUNK_POSITIONS = 16384  # positions of a chunk on a GPU, like `nestling.batches.packing.token_budget`


@dataclass(frozen=True)
class StageEstimate:
    """Estimate of a stage.

    Args:
        memory: Memory of each process.
        tokens: Tokens that the model processes, each counted once.
        forwards: Mean number of forward passes of a token.
        operations: Floating-point operations of all processes.
        length: Mean number of tokens that a token attends to: that of texts, where the longer ones count more.
        backward: Whether there is a backward pass.
    """

    memory: MemoryEstimate
    tokens: float
    forwards: float
    operations: float
    length: float
    backward: bool = True

    @property
    def fits(self) -> bool:
        """Whether the stage fits into the memory of a device."""
        return self.memory.advice is None

    def gpu_hours(self, speed: float) -> float:
        """Hours of a single GPU at a speed in operations per second."""
        return self.operations / speed / 3600


def estimate_stage(stage: StageCosts, launch: LaunchCosts, device_memory: float) -> StageEstimate:
    """Estimate a stage on devices with `device_memory` bytes.

    Raises:
        ValueError: The recipe cannot be launched this way, or the configuration of its model is unknown.
    """
    config = read_recipe(stage.script, stage.path)
    if isinstance(config, MineConfig):
        return mining_estimate(config, stage, device_memory)
    require(stage.documents is None, f"{stage.path}: documents is a setting of mining stages only")
    require(
        config.batch_size % launch.num_processes == 0,
        f"{stage.path}: batch_size is {config.batch_size}, which {launch.num_processes} processes cannot divide "
        "equally",
    )
    config = as_launched(config, launch)
    require(
        config.tuning != "qlora",
        f"{stage.path}: the memory of 4-bit weights is not estimated; set tuning: lora in a launch",
    )
    sharded, shape = launch.backend in ("zero3", "fsdp2"), model_of(config, stage)
    model, position_bytes = fake_recipe_model(
        stage.script,
        stage.path,
        shape,
        lora=config.tuning == "lora",
        dtype=weights_dtype(config, launch),
        sharded=sharded,
    )
    if isinstance(config, RerankConfig):
        return reranking_estimate(config, stage, launch, model, position_bytes, device_memory)
    return embedding_estimate(config, stage, launch, model, position_bytes, device_memory)


def as_launched(config: Training, launch: LaunchCosts) -> Training:
    """A recipe with the settings of a launch. Raises ValueError if they contradict each other."""
    tuning = launch.tuning or config.tuning
    lora = LoraConfig() if tuning == "full" else config.lora  # a recipe of adapters may be launched without
    config = replace(config, tuning=tuning, lora=lora, optim=launch.optim or config.optim)
    require_whole(config.optim, sharded=launch.backend not in ("one", "ddp"))
    return config


def weights_dtype(config: TrainingConfig, launch: LaunchCosts) -> torch.dtype:
    """Dtype of the weights in memory: frozen ones keep that of the checkpoint, except with ZeRO-3."""
    frozen = config.tuning == "lora" and config.precision == "bf16" and launch.backend != "zero3"
    return torch.bfloat16 if frozen or config.bf16_weights else torch.float32


@cache
def fake_recipe_model(
    script: ScriptName | None, path: str, model: str, *, lora: bool, dtype: torch.dtype, sharded: bool
) -> tuple[TokenModel, float]:
    """A model for a recipe with the configuration of `model`, and its bytes of saved activations per position."""
    config = read_recipe(script, path)
    reranker = isinstance(config, RerankConfig)
    fake = FakeModel(
        model_config_of(model),
        dtype=dtype,
        precision=computing_dtype(config.precision),
        lora=asdict(config.lora) if lora else None,
        reranker=reranker,
        full_vocabulary=reranker and config.loss.objective == "pointwise_vocabulary",
        gradient_checkpointing_length=config.gradient_checkpointing_length,
    )
    length = config.query_max_length + config.document_max_length if reranker else config.longest
    length = min(length, fake.model.max_positions)
    return fake.model, fake.bytes_per_position(length, config.chunk_tokens or CHUNK_POSITIONS, sharded=sharded)


def embedding_estimate(
    config: EmbedConfig,
    stage: StageCosts,
    launch: LaunchCosts,
    model: TokenModel,
    position_bytes: float,
    device_memory: float,
) -> StageEstimate:
    """Estimate the training of an embedder: chunks without kept activations run forward twice."""
    fractions, full_gradients = state_fractions(launch, model, device_memory, config.optim)
    activation_memory = room_for_activations(
        free_memory(launch, fractions, model, device_memory), trained_bytes(model), fractions
    )
    graph_room = activation_memory if config.activation_memory is None else config.activation_memory * 1e9
    row = embedder_workload(config, stage)
    tokens = config.batch_size // launch.num_processes * row.tokens
    # ZeRO-3 keeps no activations if it reduces gradients after each chunk.
    kept = kept_bytes(graph_room, position_bytes, tokens) if full_gradients or launch.backend != "zero3" else 0.0
    memory = estimate(
        model,
        fractions,
        chunk=position_bytes * (config.chunk_tokens or CHUNK_POSITIONS),
        kept=kept_bytes(graph_room, position_bytes, config.most_tokens(launch.num_processes)),
        room=device_memory,
    )
    recomputed = recomputations(config, max(truncated_lengths(config, stage)))
    return training_estimate(
        model, memory, row.times(rows_visited(config, stage)), 2 - kept / (position_bytes * tokens) + recomputed
    )


def reranking_estimate(
    config: RerankConfig,
    stage: StageCosts,
    launch: LaunchCosts,
    model: TokenModel,
    position_bytes: float,
    device_memory: float,
) -> StageEstimate:
    """Estimate the training of a reranker, which keeps activations for one chunk only."""
    fractions, _ = state_fractions(launch, model, device_memory, config.optim)
    chunk = position_bytes * (config.chunk_tokens or CHUNK_POSITIONS)
    workload = reranker_workload(config, stage, causal=model.causal).times(rows_visited(config, stage))
    recomputed = recomputations(config, stage.query_tokens + stage.document_tokens)
    return training_estimate(
        model, estimate(model, fractions, chunk=chunk, kept=0.0, room=device_memory), workload, 1 + recomputed
    )


def training_estimate(model: TokenModel, memory: MemoryEstimate, workload: Workload, forwards: float) -> StageEstimate:
    """Estimate of a workload with `forwards` forward passes and one backward pass."""
    passes = operations_of(model, workload)
    operations = forwards * passes.forward + passes.backward
    return StageEstimate(memory, workload.tokens, forwards, operations, workload.length)


def recomputations(config: TrainingConfig, length: float) -> int:
    """Additional forward passes during the backward pass over texts of a length."""
    return int(config.gradient_checkpointing_length is not None and length > config.gradient_checkpointing_length)


def rows_visited(config: TrainingConfig, stage: StageCosts) -> float:
    """Number of rows that a run processes, over all epochs."""
    steps = config.max_steps or round_up(config.num_train_epochs * stage.examples / config.batch_size)
    return float(steps * config.batch_size)


def documents_per_row(config: TrainingConfig, stage: StageCosts) -> float:
    """Number of documents that are sampled for a row."""
    return min(config.num_positives, stage.positives) + config.num_negatives


def embedder_workload(config: EmbedConfig, stage: StageCosts) -> Workload:
    """Workload of one row of an embedder: the query and its documents, each as a text."""
    query, document = truncated_lengths(config, stage)
    return Workload.texts(1, query) + Workload.texts(documents_per_row(config, stage), document)


def truncated_lengths(config: EmbedConfig, stage: StageCosts) -> tuple[float, float]:
    """Mean tokens of queries and documents, limited by their maximum lengths."""
    return min(stage.query_tokens, config.query_max_length), min(stage.document_tokens, config.document_max_length)


def reranker_workload(config: RerankConfig, stage: StageCosts, *, causal: bool = True) -> Workload:
    """Workload of one row of a reranker: the documents after their prefix, which is shared or repeated for each.

    Pairs of an encoder share nothing.
    """
    documents, query, document = documents_per_row(config, stage), stage.query_tokens, stage.document_tokens
    if config.share_prefix and causal:
        return Workload.texts(1, query) + Workload.texts(documents, document, before=query)
    return Workload.texts(documents, query + document)


def mining_estimate(config: MineConfig, stage: StageCosts, device_memory: float) -> StageEstimate:
    """Estimate mining: each process encodes a part with the first embedder in float32 weights; search is exhaustive."""
    shape = model_config_of(model_of(config, stage))
    model = FakeModel(shape, dtype=torch.float32, precision=torch.float32, lora=None).model
    documents = stage.documents or stage.examples * stage.positives
    workload = Workload.texts(stage.examples, stage.query_tokens) + Workload.texts(documents, stage.document_tokens)
    search = 2.0 * model.width * stage.examples * documents
    memory = estimate(model, StateFractions(1.0, 0.0, 0.0), chunk=0.0, kept=0.0, room=device_memory)
    operations = operations_of(model, workload).forward + search
    return StageEstimate(memory, workload.tokens, 1.0, operations, workload.length, backward=False)


def model_of(config: EmbedConfig | RerankConfig | MineConfig, stage: StageCosts) -> str:
    """The model that has the shape of a stage's; for mining, of its first embedder's.

    Raises:
        ValueError: There is no embedder among the retrievers.
    """
    if stage.model is not None:
        return stage.model
    if not isinstance(config, MineConfig):
        return config.model
    models = [each for each in config.retrievers if each not in ("bm25", "given")]
    require(bool(models), f"{stage.path}: no embedder among the retrievers, so there is nothing to estimate")
    return models[0]
