"""What one stage needs and takes with one way to start it."""

import math
from dataclasses import asdict, dataclass
from functools import cache

import torch

from nestling.backends.sizes import StateFractions, trained_bytes
from nestling.config import EmbedConfig, MineConfig, RerankConfig, TrainingConfig, require
from nestling.config.costs import LaunchCosts, ScriptName, StageCosts
from nestling.costs.fake_models import FakeModel
from nestling.costs.launches import free_beside, shares_of
from nestling.costs.recipes import read_recipe
from nestling.costs.shapes import shape_of
from nestling.costs.work import Reading, passes_of
from nestling.models.token_model import TokenModel
from nestling.training.memory import MemoryEstimate, estimate, kept_bytes, room_for_activations

CHUNK = 16384  # positions of a chunk on a GPU, as `nestling.batches.packing.token_budget` has it


@dataclass(frozen=True)
class Costs:
    """What a stage takes.

    Args:
        memory: Of each process.
        tokens: That run through the model, each counted once.
        forwards: How often each runs forward, on average.
        operations: Floating-point operations of all processes.
    """

    memory: MemoryEstimate
    tokens: float
    forwards: float
    operations: float

    @property
    def fits(self) -> bool:
        return self.memory.advice is None

    def gpu_hours(self, speed: float) -> float:
        """Hours of one GPU that does so many operations a second."""
        return self.operations / speed / 3600


def costs_of(stage: StageCosts, launch: LaunchCosts, room: float) -> Costs:
    """What a stage takes on devices with so many bytes.

    Raises:
        ValueError: A recipe that this launch does not start, or a model of unknown shape.
    """
    config = read_recipe(stage.script, stage.path)
    if isinstance(config, MineConfig):
        return mining_costs(config, stage, room)
    require(stage.documents is None, f"{stage.path}: documents is of mining")
    require(
        config.batch_size % launch.num_processes == 0,
        f"{stage.path}: batch_size is {config.batch_size}, which {launch.num_processes} processes cannot share out "
        "equally",
    )
    tuning = launch.tuning or config.tuning
    require(tuning != "qlora", f"{stage.path}: what 4 bits take is not estimated; give tuning: lora to a launch")
    # Frozen weights are as published, but for ZeRO-3's shards.
    half = tuning == "lora" and config.precision == "bf16" and launch.backend != "zero3"
    dtype = torch.bfloat16 if half else torch.float32
    sharded, shape = launch.backend in ("zero3", "fsdp2"), stage.model or config.model
    model, position = measured(stage.script, stage.path, shape, lora=tuning == "lora", dtype=dtype, sharded=sharded)
    if isinstance(config, RerankConfig):
        return reranking_costs(config, stage, launch, model, position, room)
    return embedding_costs(config, stage, launch, model, position, room)


@cache
def measured(
    script: ScriptName | None, path: str, model: str, *, lora: bool, dtype: torch.dtype, sharded: bool
) -> tuple[TokenModel, float]:
    """A recipe's model, of the shape of another one, and bytes of a graph for each position of a chunk."""
    config = read_recipe(script, path)
    reranker = isinstance(config, RerankConfig)
    fake = FakeModel(
        shape_of(model),
        dtype=dtype,
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        lora=asdict(config.lora) if lora else None,
        reranker=reranker,
        full_vocabulary=reranker and config.loss.objective == "pointwise_vocabulary",
        gradient_checkpointing_length=config.gradient_checkpointing_length,
    )
    length = config.query_max_length + config.document_max_length if reranker else config.longest
    return fake.model, fake.bytes_a_position(length, config.chunk_tokens or CHUNK, sharded=sharded)


def embedding_costs(
    config: EmbedConfig, stage: StageCosts, launch: LaunchCosts, model: TokenModel, position: float, room: float
) -> Costs:
    """Chunks whose graphs do not stay between the passes run forward twice."""
    shares, whole = shares_of(launch, model, room)
    half = room_for_activations(free_beside(launch, shares, model, room), trained_bytes(model), shares)
    graph_room = half if config.activation_memory is None else config.activation_memory * 1e9
    row = embedder_reading(config, stage)
    tokens = config.batch_size // launch.num_processes * row.tokens
    # ZeRO-3 keeps none where it reduces gradients after each chunk.
    kept = kept_bytes(graph_room, position, tokens) if whole or launch.backend != "zero3" else 0.0
    memory = estimate(
        model,
        shares,
        chunk=position * (config.chunk_tokens or CHUNK),
        kept=kept_bytes(graph_room, position, config.most_tokens(launch.num_processes)),
        room=room,
    )
    again = recomputed(config, max(cut_lengths(config, stage)))
    return training_costs(model, memory, row.times(rows_of(config, stage)), 2 - kept / (position * tokens) + again)


def reranking_costs(
    config: RerankConfig, stage: StageCosts, launch: LaunchCosts, model: TokenModel, position: float, room: float
) -> Costs:
    """Graphs do not outlive their chunk."""
    shares, _ = shares_of(launch, model, room)
    chunk = position * (config.chunk_tokens or CHUNK)
    reading = reranker_reading(config, stage).times(rows_of(config, stage))
    again = recomputed(config, stage.query_tokens + stage.document_tokens)
    return training_costs(model, estimate(model, shares, chunk=chunk, kept=0.0, room=room), reading, 1 + again)


def training_costs(model: TokenModel, memory: MemoryEstimate, reading: Reading, forwards: float) -> Costs:
    passes = passes_of(model, reading)
    return Costs(memory, reading.tokens, forwards, forwards * passes.forward + passes.backward)


def recomputed(config: TrainingConfig, length: float) -> int:
    """How often the backward pass runs texts of a length forward again; torch spares the last product of each layer."""
    return int(config.gradient_checkpointing_length is not None and length > config.gradient_checkpointing_length)


def rows_of(config: TrainingConfig, stage: StageCosts) -> float:
    """Rows that a run visits."""
    steps = config.max_steps or math.ceil(config.num_train_epochs * stage.examples / config.batch_size)
    return float(steps * config.batch_size)


def documents_of(config: TrainingConfig, stage: StageCosts) -> float:
    """Documents that are drawn for a row."""
    return min(config.num_positives, stage.positives) + config.num_negatives


def embedder_reading(config: EmbedConfig, stage: StageCosts) -> Reading:
    """Of one row: a query and its documents, each by itself."""
    query, document = cut_lengths(config, stage)
    return Reading.texts(1, query) + Reading.texts(documents_of(config, stage), document)


def cut_lengths(config: EmbedConfig, stage: StageCosts) -> tuple[float, float]:
    """Mean tokens of queries and documents, no longer than they may be."""
    return min(stage.query_tokens, config.query_max_length), min(stage.document_tokens, config.document_max_length)


def reranker_reading(config: RerankConfig, stage: StageCosts) -> Reading:
    """Of one row: the beginning, once or with each document, and the documents behind it."""
    documents, query, document = documents_of(config, stage), stage.query_tokens, stage.document_tokens
    if config.share_prefix:
        return Reading.texts(1, query) + Reading.texts(documents, document, before=query)
    return Reading.texts(documents, query + document)


def mining_costs(config: MineConfig, stage: StageCosts, room: float) -> Costs:
    """Every process has the first embedder in float32, whole, and encodes its part; every query meets every document.

    Raises:
        ValueError: No embedder among the retrievers.
    """
    models = [each for each in config.retrievers if each not in ("bm25", "given")]
    require(bool(models), f"{stage.path}: no embedder among the retrievers, so that there is nothing to estimate")
    model = FakeModel(shape_of(stage.model or models[0]), dtype=torch.float32, precision=torch.float32, lora=None).model
    documents = stage.documents or stage.examples * stage.positives
    reading = Reading.texts(stage.examples, stage.query_tokens) + Reading.texts(documents, stage.document_tokens)
    search = 2.0 * model.width * stage.examples * documents
    memory = estimate(model, StateFractions(1.0, 0.0, 0.0), chunk=0.0, kept=0.0, room=room)
    return Costs(memory, reading.tokens, 1.0, passes_of(model, reading).forward + search)
