"""What each dataset of a run trains: its objective by name, its rows by kind, its instructions; why a loss can be 0.

The objectives: docs/embedding.md and docs/reranking.md.
"""

from collections.abc import Iterator, Sequence

from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, RerankConfig, TrainingConfig
from nestling.records.table import RecordTable
from nestling.training.unused_settings import has_negatives


def objective(config: TrainingConfig, source: Source) -> str:
    """What a dataset trains with."""
    if isinstance(config, EmbedConfig):
        return embed_objective(config, source)
    assert isinstance(config, RerankConfig)
    loss, graded = config.loss, source.table.graded
    if not loss.pointwise and loss.objective != "lambda":
        return loss.objective
    targets = "the scores of pairs" if graded else "teacher scores" if loss.labels == "teacher" else "labels 1 and 0"
    return f"{loss.objective} with {targets} as targets"


def embed_objective(config: EmbedConfig, source: Source) -> str:
    """The graded objective of graded pairs, InfoNCE of others, distillation where all rows have the scores for it."""
    retained = " and retention of random words" if config.loss.retention_weight else ""
    if source.table.graded:
        return graded_objective(config) + retained
    name = "InfoNCE" if source.in_batch_negatives else "InfoNCE with each row's own negatives only"
    if config.loss.guide is not None:
        name += " with false negatives masked by a guide"
    if config.loss.spread_out_weight:
        name += " and the spread-out regulariser"
    if config.loss.regression_weight:
        name += " and regression on a teacher's embeddings"
    name += retained
    if config.loss.mask_hard_negatives and not has_negatives(config, source):
        name += ", without hard negatives for loss.mask_hard_negatives to mask"
    if not config.loss.distillation_weight:
        return name
    if config.loss.teacher is not None:
        return f"{name} and distillation from a teacher's embeddings"
    if source.table.has_scores:
        margins = "the margins of " if config.loss.distillation_objective == "margin_mse" else ""
        return f"{name} and distillation from {margins}teacher scores"
    return f"{name}, without distillation, for which every row needs teacher scores"


def graded_objective(config: EmbedConfig) -> str:
    """What graded pairs train with."""
    return {
        "cosent": "CoSENT, the scores of pairs as order",
        "angle": "AnglE, the scores of pairs as order",
        "cosine_similarity": "cosine similarity, the scores of pairs as cosines",
    }[config.loss.graded_objective]


def row_kinds(table: RecordTable) -> str:
    """The rows of a dataset by kind."""
    if table.graded:
        low, high = table.score_range()
        return f"{len(table):,} graded pairs, scores {low:g} to {high:g}"
    counts = table.summary
    kinds = {
        "with hard negatives": counts.rows_with_negatives,
        "without positives": counts.rows_without_positives,
        "with teacher scores": counts.rows_scored,
    }
    shown = "".join(f", {count:,} {kind}" for kind, count in kinds.items() if count)
    return f"{len(table):,} rows{shown}; {counts.positives:,} positives, {counts.negatives:,} hard negatives"


def instructions(table: RecordTable, default: str | None) -> str:
    """In how many rows which instruction stands.

    Args:
        table: The rows.
        default: The task of queries that neither row nor dataset gives one; None for the model's own.
    """
    own, others = table.summary.instructions, len(table) - table.summary.instructions.rows
    of_others = table.instruction or default
    parts = [f"{own} of {len(table):,} rows"] if own.rows else []
    if others:
        named = "the model's own" if of_others is None else repr(of_others)
        parts.append(f"{named} in {f'the other {others:,}' if own.rows else 'all rows'}")
    return "; ".join(parts)


def describe_dataset(config: TrainingConfig, source: Source) -> list[str]:
    """Its objective, its rows and its instructions, a line each."""
    table = source.table
    return [
        objective(config, source),
        row_kinds(table),
        f"instruction: {instructions(table, config.query_instruction)}",
    ]


def zero_loss_reasons(config: TrainingConfig, sources: Sequence[Source]) -> list[str]:
    """What loss and gradient of exactly 0 can come from with these datasets, and what to do about each."""
    if isinstance(config, EmbedConfig):
        return list(_embed_reasons(config, sources))
    assert isinstance(config, RerankConfig)
    return list(_rerank_reasons(config))


def _embed_reasons(config: EmbedConfig, sources: Sequence[Source]) -> Iterator[str]:
    graded = [source.table.name for source in sources if source.table.graded]
    others = [source.table.name for source in sources if not source.table.graded]
    if graded and config.loss.graded_objective != "cosine_similarity":
        name = graded_objective(config).split(",")[0]
        yield (
            f"{', '.join(graded)}: {name} orders the pairs of a batch by their scores, and all pairs of a batch have "
            "one score; raise batch_size, or add rows of other scores"
        )
    if others:
        masked = config.loss.score_margin is not None
        yield (
            f"{', '.join(others)}: no query has a negative left in its batch, because rows share their query or their "
            f"positive{', or loss.score_margin masks what scores above it' if masked else ''}; look at "
            "scripts/check_data.py, or mine hard negatives (scripts/mine.py)"
            f"{', or set loss.score_margin to null' if masked else ''}"
        )
        yield (
            f"{', '.join(others)}: every positive is so far above all its negatives that the loss at temperature "
            f"{config.loss.temperature:g} rounds to 0; the data has no more to teach: end the training earlier, mine "
            "harder negatives, or raise loss.temperature"
        )


def _rerank_reasons(config: RerankConfig) -> Iterator[str]:
    if config.loss.needs_positives:
        yield (
            f"{config.loss.objective} compares positives with negatives of a query, and no query of a batch has both; "
            "add such rows"
        )
    elif config.loss.objective == "lambda":
        yield "lambda compares documents of a query whose scores differ, and no query of a batch has two; add such rows"
    if config.loss.objective == "distillation":
        yield "distillation compares the documents of a query, and every query of a batch has one; raise num_negatives"
    yield "the model gives every document its target already; end the training earlier, or mine harder negatives"
