"""The datasets of a run: read, checked and shown before any weights load, and recorded in the run's folder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from nestling.batches.sampling import BatchSampler, RowSampler, Source
from nestling.config import TrainData, TrainingConfig, require, require_unique
from nestling.config.embed import EmbedConfig
from nestling.config.prompts import require_no_instructions
from nestling.records.load import default_name, load_records, require_splits
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.table import RecordTable
from nestling.run_files import READ, DataLine, DataRead, read_data, write_data_lines, write_data_read
from nestling.training.held_out import hold_out, keep_held_out
from nestling.training.objectives import describe_dataset


def read_sources(
    config: TrainingConfig,
    check: Callable[[TrainData, RecordTable], None],
    *,
    show: bool,
    allow_no_positives: bool = False,
) -> list[Source]:
    """Read the training sets, and say what was read, kept and dropped.

    Args:
        config: The settings.
        check: Raises ValueError for a dataset that the recipe cannot train on.
        show: Whether this process prints.
        allow_no_positives: Keep rows that have negatives alone.
    """
    sources = []
    for data in config.train:
        require_splits(data.path, data.split)
        held_out = hold_out(config, data, show=show)
        table = load_records(
            data.path,
            split=data.split,
            name=data.name,
            instruction=data.instruction,
            default_instruction=config.query_instruction,
            columns=data.columns,
            progress=show,
            allow_no_positives=allow_no_positives,
            keep=None if held_out is None else held_out.keep,
        )
        if show:
            print(table.summary, flush=True)
        check(data, table)
        folder = None if held_out is None else held_out.folder
        sources.append(Source(table, data.weight, data.in_batch_negatives, data.symmetric, folder))
    require_unique("train", [source.table.name for source in sources])
    return sources


def build_batch_sampler(config: TrainingConfig, sources: Sequence[Source]) -> BatchSampler:
    """Which rows make up which global batch."""
    row_sampler = RowSampler(config.num_positives, config.num_negatives, config.seed)
    return BatchSampler(sources, config.batch_size, row_sampler, config.seed, config.mixing_temperature)


def check_embed_data(config: EmbedConfig, data: TrainData, table: RecordTable) -> None:
    """Refuse a dataset whose loss would be 0, for it has nothing to contrast its positives with, or with a setting of
    graded pairs alone, or whose instructions the prompt of queries leaves out."""
    require(data.symmetric or table.graded, f"{data.path}: symmetric is of graded pairs, and these have no score")
    require(
        data.in_batch_negatives or not table.graded,
        f"{data.path}: in_batch_negatives is of queries with positives, and graded pairs have no negatives; leave it "
        "out",
    )
    if table.graded and config.loss.graded_objective == "cosine_similarity":
        require_cosines(data, table)
    require_no_instructions(config.query_prompt, data.path, table.summary.instructions.rows)
    if table.graded or config.refresh.steps is not None or min(table.max_negatives, config.num_negatives) > 0:
        return
    missing = "in_batch_negatives" if not data.in_batch_negatives else "loss.terms"
    require(
        data.in_batch_negatives and bool(config.loss.terms),
        f"{data.path}: without {missing} its rows need hard negatives, and it has or draws none",
    )
    shared = "query" if table.has_one_query else "positive" if table.has_one_positive else None
    require(
        shared is None or not config.loss.mask_identity,
        f"{data.path}: all its rows have the same {shared}, so that no text of a batch is a negative of another row, "
        "and it has or draws no hard negatives; give it some",
    )


def require_cosines(data: TrainData, table: RecordTable) -> None:
    """Raise ValueError for graded pairs whose scores are no cosines."""
    low, high = table.score_range()
    require(
        -1 <= low <= high <= 1,
        f"{data.path}: scores are {low:g} to {high:g}, and loss.graded_objective: cosine_similarity learns them as "
        "cosines; expected -1 to 1: rescale them, or take cosent",
    )


def shared_instruction(reads: Iterable[DataRead]) -> str | None:
    """The instruction that all rows of all training datasets have of their own; None if there is no such one."""
    found = {each.row_instruction for each in reads}
    return found.pop() if len(found) == 1 else None


def query_prompts(config: TrainingConfig, reads: Iterable[DataRead]) -> dict[str, str]:
    """The instruction of each dataset that has one for all of its rows, by the dataset's name."""
    own = {each.name: each.row_instruction for each in reads}
    names = [data.name or default_name(Path(data.path)) for data in config.train]
    found = {name: own.get(name) or data.instruction for name, data in zip(names, config.train, strict=True)}
    return {name: instruction for name, instruction in found.items() if instruction}


def train_reads(sources: Sequence[Source]) -> list[DataRead]:
    """What was read of each training dataset."""
    return [DataRead(source.table.name, "train", asdict(source.table.summary)) for source in sources]


def recorded_reads(folder: Path) -> list[DataRead]:
    """`train_reads` of a run, from its folder."""
    return [each for each in read_data(folder / READ) if each.role == "train"]


def record_data(
    folder: Path, config: TrainingConfig, sources: Sequence[Source], dev_sets: Sequence[RetrievalSet]
) -> None:
    """Leave in a run's folder what its model's card says of the data, and what its report does."""
    keep_held_out(folder, sources)
    write_data_lines(folder, [data_line(config, source) for source in sources])
    write_data_read(
        folder, [*train_reads(sources), *(DataRead(each.name, "dev", asdict(each.summary)) for each in dev_sets)]
    )


def data_line(config: TrainingConfig, source: Source) -> DataLine:
    """A dataset in one line of the model card."""
    return DataLine(source.table.name, len(source.table), "; ".join(describe_dataset(config, source)))
