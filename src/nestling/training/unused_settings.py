"""Settings of an objective that the data has nothing for: refused before any weights load, since a run would leave them
unused without a word."""

from collections.abc import Sequence

from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, LossConfig, RerankConfig, TrainingConfig, require


def require_used(config: EmbedConfig, sources: Sequence[Source]) -> None:
    """Raise ValueError for a setting of an embedder's loss that no dataset of the run learns by."""
    loss, contrastive = config.loss, [source for source in sources if not source.table.graded]
    if not contrastive:
        refuse_settings_without_negatives(config)
        return
    require(
        len(contrastive) < len(sources)
        or (loss.graded_objective, loss.graded_temperature)
        == (LossConfig.graded_objective, LossConfig.graded_temperature),
        "loss.graded_objective and loss.graded_temperature are of graded pairs, and no dataset has any; leave them out",
    )
    require(
        loss.other_hard_negatives or any(has_negatives(config, source) for source in contrastive),
        "loss.other_hard_negatives: false leaves hard negatives of other rows out, and no dataset has or draws any; "
        "leave this out, or mine some",
    )
    require_hardness(config, contrastive)
    scored = [source for source in contrastive if source.table.has_scores]
    require(
        not loss.needs_teacher_scores or bool(scored),
        "loss.distillation_weight needs teacher scores, and no dataset has them in every row; set it to 0 without them",
    )
    require(
        loss.distillation_objective != "margin_mse" or any(has_negatives(config, source) for source in scored),
        "loss.distillation_objective: margin_mse learns margins between positives and hard negatives, and no dataset "
        "with teacher scores has or draws hard negatives; set kl, or mine some",
    )


def refuse_settings_without_negatives(config: EmbedConfig) -> None:
    """Raise ValueError for a setting that was switched on, and that graded pairs have no use for.

    Not for score_margin and terms, which configurations for all kinds of data set.
    """
    loss = config.loss
    settings = {
        "loss.guide": loss.guide is not None,
        "loss.distillation_weight": loss.distillation_weight > 0,
        "loss.regression_weight": loss.regression_weight > 0,
        "loss.spread_out_weight": loss.spread_out_weight > 0,
        "loss.hardness_mode": loss.hardness_mode is not None,
        "refresh.steps": config.refresh.steps is not None,
    }
    unused = ", ".join(name for name, is_set in settings.items() if is_set)
    require(
        not unused,
        f"{unused}: all datasets are graded pairs, which learn their scores alone; leave this out, or add rows of "
        "queries with positives",
    )


def require_hardness(config: EmbedConfig, contrastive: Sequence[Source]) -> None:
    """Raise ValueError if no dataset has negatives of the kind that hardness weights are for."""
    mode = config.loss.hardness_mode
    own = any(has_negatives(config, source) for source in contrastive)
    in_batch = any(source.in_batch_negatives for source in contrastive)
    require(
        mode != "hard_negatives" or own,
        "loss.hardness_mode: hard_negatives weights a row's own hard negatives, and no dataset has or draws any; mine "
        "some, or set in_batch_negatives",
    )
    require(
        mode != "in_batch_negatives" or in_batch,
        "loss.hardness_mode: in_batch_negatives weights documents of other rows, and no dataset has "
        "in_batch_negatives; set hard_negatives",
    )
    require(
        mode != "all_negatives" or own or (in_batch and "query_document" in config.loss.terms),
        "loss.hardness_mode: all_negatives weights documents compared with the query: a row's own hard negatives, of "
        "which no dataset has or draws any, and those of the term query_document, which loss.terms lacks; name that "
        "term, or mine some",
    )


def has_negatives(config: EmbedConfig, source: Source) -> bool:
    """Whether rows of a dataset have hard negatives in training."""
    return config.refresh.steps is not None or min(source.table.max_negatives, config.num_negatives) > 0


def require_dev(config: TrainingConfig, dev_sets: Sequence[object]) -> None:
    """Raise ValueError for evaluations of a run that has nothing to evaluate on."""
    require(
        bool(dev_sets) or config.eval_steps == 0,
        f"eval_steps is {config.eval_steps}, and there is no dev set; give one with --dev FOLDER, hold one out with "
        "--dev_share 0.05, or leave eval_steps out",
    )


def require_relevant(config: RerankConfig, sources: Sequence[Source]) -> None:
    """Raise ValueError if nothing tells a reranker what is relevant: it would learn to refuse every document."""
    require(
        config.loss.needs_scores or any(source.table.graded or source.table.max_positives > 0 for source in sources),
        f"{', '.join(source.table.name for source in sources)}: no row has a positive, so that a reranker would learn "
        "that no document is relevant; add rows with positives, or name the field that holds them "
        "(columns, docs/data.md)",
    )
