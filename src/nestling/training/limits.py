"""Limits of a recipe's settings against what the model can read, refused before any training."""

from dataclasses import replace
from pathlib import Path

from nestling.batches.encoder_pairs import EncoderPairs
from nestling.batches.pair_prompts import Pairs
from nestling.config import EmbedConfig, RerankConfig, read_run, require, require_dims
from nestling.models.embedder import Embedder, read_model_files, read_width
from nestling.models.token_model import max_positions, read_config
from nestling.run_files import CONFIG

# The least of the dimensions that are trained unless others are named.
LEAST_DIM = 64


def with_matryoshka_dims(config: EmbedConfig) -> EmbedConfig:
    """The settings with the dimensions that are trained where they name none: those that the run to resume began with.

    A new run takes those that the model's config.json names, or else its width and the halves of it.
    """
    if config.matryoshka_dims is not None:
        return config
    folder = Path(config.output_dir)
    begun = read_run(folder) if config.resume and (folder / CONFIG).is_file() else None
    if isinstance(begun, EmbedConfig) and begun.matryoshka_dims is not None:
        return replace(config, matryoshka_dims=begun.matryoshka_dims)
    model = read_config(config.model, read_model_files(config.model).subfolder)
    width = read_width(config.model, config.pooling)
    named = model.to_dict().get("matryoshka_dimensions") or []
    return replace(config, matryoshka_dims=[dim for dim in named if dim <= width] or halves(width))


def halves(width: int) -> list[int]:
    """A width and its halves down to `LEAST_DIM`, as long as they are whole; empty if that is the width alone."""
    dims = [width]
    while dims[-1] % 2 == 0 and dims[-1] // 2 >= LEAST_DIM:
        dims.append(dims[-1] // 2)
    return dims if len(dims) > 1 else []


def matryoshka_dims(config: EmbedConfig) -> dict[int, float]:
    """The dimensions to train and their weights, largest first, the full one always among them.

    Raises:
        ValueError: A dimension or a length is more than the model has, by its config.json: before its weights load.
    """
    model = read_config(config.model, read_model_files(config.model).subfolder)
    width = read_width(config.model, config.pooling)
    named = config.matryoshka_dims or []
    require_dims(named, width, name="matryoshka_dims")
    readable = max_positions(model)
    require(
        config.longest <= readable,
        f"query_max_length, document_max_length: {config.longest} tokens are more than the model's {readable}",
    )
    require(
        (config.max_seq_length or 0) <= readable,
        f"max_seq_length: {config.max_seq_length} tokens are more than the model's {readable}",
    )
    weights = dict(zip(named, config.matryoshka_weights or [1.0] * len(named), strict=True))
    return {dim: weights.get(dim, 1.0) for dim in sorted({*named, width}, reverse=True)}


def require_room_for_texts(config: EmbedConfig, embedder: Embedder) -> None:
    """Raise ValueError for a length limit that leaves no room for a text beside its prompt."""
    queries = [embedder.prompts.query(each) for each in {data.instruction for data in config.train}]
    limits = [(prompt, config.query_max_length, "query_max_length") for prompt in queries]
    for prompt, limit, name in [
        *limits,
        (embedder.prompts.document, config.document_max_length, "document_max_length"),
    ]:
        used = embedder.text_tokenizer.overhead(prompt)
        require(limit > used, f"{name} is {limit}, and prompt and special tokens alone take {used}; raise it")


def require_readable_pairs(config: RerankConfig, pairs: Pairs) -> None:
    """Raise ValueError for length limits that make prompts longer than the model can read.

    The document of an encoder's pair gets what the query leaves, and there must be some.
    """
    readable = max_positions(read_config(config.model))
    instructions = [*(data.instruction for data in config.train), *(data.instruction for data in config.dev)]
    overhead = max(map(pairs.overhead, instructions))
    if isinstance(pairs, EncoderPairs):
        readable = pairs.max_length
        require(
            overhead + config.query_max_length < readable,
            f"query_max_length: with the {overhead} tokens around it, {config.query_max_length} leave no room for a "
            f"document in the {readable} tokens of a pair that the model reads; lower it",
        )
        return
    longest = overhead + config.query_max_length + config.document_max_length
    require(
        longest <= readable,
        f"query_max_length, document_max_length: with the {overhead} tokens of the prompt they make {longest}, more "
        f"than the model's {readable}",
    )
