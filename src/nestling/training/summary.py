"""What follows from the settings and the data, to read before step 1."""

from collections.abc import Sequence
from itertools import islice

from torch import nn

from nestling.backends.backend import Backend
from nestling.backends.sizes import full_shape
from nestling.batches.lengths import measure_lengths
from nestling.batches.sampling import BatchSampler, Source
from nestling.config import EmbedConfig, TrainingConfig
from nestling.console import summary
from nestling.models.embedder import Embedder
from nestling.training.adapted import adapter_lines
from nestling.training.loading import PROFILED
from nestling.training.memory import estimate, kept_bytes
from nestling.training.objectives import describe_dataset
from nestling.training.parts import EmbedParts, RerankParts


def embed_summary(parts: EmbedParts, total: int, done: int) -> str:
    """Of a run of train/embed.py with so many steps in all, of which `done` are done."""
    config, embedder, backend, budget = parts.config, parts.embedder, parts.backend, parts.budget
    kept = kept_bytes(budget.memory, budget.position, config.most_tokens(backend.ranks))
    chunk = budget.position * parts.collator.chunk_tokens
    other_queries = config.batch_size - 1
    items: dict[str, object] = {
        "model": f"{config.model} ({embedder.pooling} pooling, {embedder.dim} dimensions, {config.precision})",
        "query prompt": query_prompt(embedder, parts.batch_sampler.sources),
        **trained_line(config, embedder),
        **adapter_lines(embedder.backbone),
        "dimensions": ", ".join(map(str, parts.dims)),
        **batch_lines(config, backend),
        "negatives a query": f"up to {config.num_negatives} of its own, and documents of {other_queries} other queries",
        **refresh_line(config, parts.batch_sampler),
        **steps_line(parts.batch_sampler, total, done),
        "activations": str(budget),
        **estimate(backend.model, backend.state_fractions, chunk=chunk, kept=kept).items(),
    }
    for i, source in enumerate(parts.batch_sampler.sources):
        items[f"data {source.table.name}"] = dataset_text(config, source, str(measure_lengths(parts.collator, i)))
    return summary("training", items)


def rerank_summary(parts: RerankParts, total: int, done: int) -> str:
    """Of a run of train/rerank.py with so many steps in all, of which `done` are done."""
    config, reranker, backend = parts.config, parts.reranker, parts.backend
    chunk = parts.position_bytes * parts.collator.chunk_tokens  # freed before the next chunk's are allocated
    items: dict[str, object] = {
        "model": f"{config.model} ({config.precision})",
        **reranker.described(),
        **trained_line(config, reranker),
        **adapter_lines(reranker.backbone),
        **batch_lines(config, backend),
        "documents a query": f"up to {config.num_positives} positives and {config.num_negatives} negatives",
        **steps_line(parts.batch_sampler, total, done),
        **prompt_lines(parts),
        **estimate(reranker, backend.state_fractions, chunk=chunk, kept=0.0).items(),
        **{f"data {each.table.name}": dataset_text(config, each) for each in parts.batch_sampler.sources},
    }
    return summary("training", items)


def query_prompt(embedder: Embedder, sources: Sequence[Source]) -> str:
    """That of queries without an instruction."""
    prompt = embedder.prompts.query()
    instructed = any(each.table.instruction or each.table.summary.instructions.rows for each in sources)
    return (repr(prompt) if prompt else "none") + (", for queries without an instruction" if instructed else "")


def dataset_text(config: TrainingConfig, source: Source, *more: str) -> str:
    """What a dataset trains, a line each."""
    return "\n".join([*describe_dataset(config, source), *more])


def prompt_lines(parts: RerankParts) -> dict[str, object]:
    """Lengths of the prompts in the first batches, and how many of their texts the limits truncate."""
    indices = islice(parts.batch_sampler.batches(), min(PROFILED, parts.batch_sampler.steps_per_epoch))
    batches = [parts.collator[each] for each in indices]
    ranks, shared = parts.backend.ranks, parts.reranker.share_prefix
    tokens, positions = sum(each.tokens for each in batches), sum(each.positions for each in batches)
    return {
        "prompts": f"{tokens / sum(each.pairs for each in batches) * ranks:.0f} tokens each, "
        f"{positions / tokens:.3f} positions a token" + (" (common prefixes run once)" if shared else ""),
        "truncated": f"{sum(each.truncated for each in batches):,} queries and documents of the first {len(batches)} "
        "batches" + (", in this process" if ranks > 1 else ""),
    }


def trained_line(config: TrainingConfig, model: nn.Module) -> dict[str, object]:
    """How much of the model is trained, and how."""
    sizes = [(full_shape(each).numel(), each.requires_grad) for each in model.parameters()]
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    return {"trained": f"{trained:,} of {sum(size for size, _ in sizes):,} parameters ({config.tuning})"}


def batch_lines(config: TrainingConfig, backend: Backend) -> dict[str, object]:
    """The processes, and the queries of a step."""
    return {
        "processes": f"{backend.ranks} ({backend.name})",
        "global batch": f"{config.batch_size} queries, {config.batch_size // backend.ranks} on each process",
    }


def steps_line(batch_sampler: BatchSampler, total: int, done: int) -> dict[str, object]:
    """Steps of the whole run, of an epoch, and those done before."""
    steps = f"{total:,} ({batch_sampler.steps_per_epoch:,} an epoch)"
    return {"steps": steps + (f", {done:,} done" if done else "")}


def refresh_line(config: EmbedConfig, batch_sampler: BatchSampler) -> dict[str, object]:
    """How often hard negatives are mined again, if they are."""
    if config.refresh.steps is None:
        return {}
    return {"hard negatives": f"mined again every {config.refresh.steps or batch_sampler.steps_per_epoch:,} steps"}
