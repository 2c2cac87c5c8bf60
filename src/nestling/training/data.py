"""The datasets of a run: read, checked and shown before any weights load, and recorded in the run's folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.config import TrainData, TrainingConfig, require, require_unique
from nestling.config.embed import EmbedConfig
from nestling.records.load import load_records
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.table import RecordTable
from nestling.run_files import DataLine, DataRead, write_data_lines, write_data_read


def read_sources(
    datasets: Sequence[TrainData],
    check: Callable[[TrainData, RecordTable], None],
    *,
    show: bool,
    allow_no_positives: bool = False,
) -> list[Source]:
    """Read the training sets, and say what was read, kept and dropped.

    Args:
        datasets: The settings of each.
        check: Raises ValueError for a dataset that the recipe cannot train on.
        show: Whether this process prints.
        allow_no_positives: Keep rows that have negatives alone.
    """
    sources = []
    for data in datasets:
        table = load_records(
            data.path,
            split=data.split,
            name=data.name,
            instruction=data.instruction,
            columns=data.columns,
            progress=show,
            allow_no_positives=allow_no_positives,
        )
        if show:
            print(table.summary, flush=True)
        check(data, table)
        sources.append(Source(table, data.weight, data.in_batch_negatives, data.symmetric))
    require_unique("train", [source.table.name for source in sources])
    return sources


def require_teacher_scores(config: EmbedConfig, sources: Sequence[Source]) -> None:
    """Raise ValueError if the loss distils and no dataset has teacher scores."""
    require(
        not config.loss.distillation_weight or any(source.table.has_scores for source in sources),
        "loss.distillation_weight needs teacher scores, and no dataset has them in every row; set it to 0 without them",
    )


def build_batch_sampler(config: TrainingConfig, sources: Sequence[Source]) -> BatchSampler:
    """Which rows make up which global batch."""
    row_sampler = RowSampler(config.num_positives, config.num_negatives, config.seed)
    return BatchSampler(sources, config.batch_size, row_sampler, config.seed, config.mixing_temperature)


def record_data(folder: Path, sources: Sequence[Source], dev_sets: Sequence[RetrievalSet]) -> None:
    """Leave in a run's folder what its model's card says of the data, and what its report does."""
    write_data_lines(folder, [data_line(source) for source in sources])
    train = [DataRead(source.table.name, "train", asdict(source.table.summary)) for source in sources]
    write_data_read(folder, [*train, *(DataRead(each.name, "dev", asdict(each.summary)) for each in dev_sets)])


def data_line(source: Source) -> DataLine:
    """A dataset in one line of the model card."""
    table = source.table
    negatives = f", {table.summary.negatives:,} hard negatives" if table.summary.negatives else ""
    instruction = f", instruction: {table.instruction}" if table.instruction else ""
    text = f"{table.summary.positives:,} positives{negatives}{instruction}"
    return DataLine(table.name, len(table), text)
