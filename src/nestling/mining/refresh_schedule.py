"""Hard negatives mined again every so many steps of a run, by the model as it then is (ANCE, arXiv 2007.00808).

refresh/step-N/NAME.arrow    in the run folder: the records of dataset NAME that training uses after step N

A resumed run reads these files again, so its batches are those of a run that was never interrupted. Across refreshes
each record still comes once in an epoch, and texts are still kept from repeating in a batch where possible.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nestling.batches.embed_collation import EmbedBatch, EmbedCollator
from nestling.batches.sampling import BatchSampler
from nestling.config import RefreshConfig
from nestling.distributed.ranks import on_rank_zero
from nestling.mining.refresh_dataset import RefreshDataset, mine_again, refresh_line, write_refreshed
from nestling.mining.result import hardness
from nestling.mining.retrievers import DenseRetriever
from nestling.models.embedder import Embedder
from nestling.models.encoding import single_process
from nestling.records.table import RecordTable
from nestling.retrieval.collectives import largest_over_ranks
from nestling.training.loading import load_batches

STEP = re.compile(r"step-(\d+)")
# Folder of the embeddings that one refresh needs.
EMBEDDINGS = ".vectors"


class Refresher:
    """The batches of a run whose hard negatives are mined again every so many steps. All ranks must use it alike.

    Datasets without hard negatives are also mined before the first step; others begin with the negatives they have.

    Args:
        folder: Where the mined records are written.
        rules: How often to mine, and which candidates become negatives.
        batch_sampler: Plans the batches of the run; its tables are replaced after each refresh.
        collator: Makes the batches; its tables are replaced too.
        datasets: For each dataset of the run its queries and documents; None for those that are not mined.
        embedder: The model in training.
        equal_forwards: Whether its forward is a collective, so that all ranks must make equally many.
        progress: Show progress bars.
        say: Called with a line to print.
        log: Called with a step and its metrics.
    """

    def __init__(
        self,
        folder: Path,
        rules: RefreshConfig,
        batch_sampler: BatchSampler,
        collator: EmbedCollator,
        datasets: Sequence[RefreshDataset | None],
        embedder: Embedder,
        *,
        equal_forwards: bool,
        progress: bool,
        say: Callable[[str], None],
        log: Callable[[int, Mapping[str, object]], None],
    ) -> None:
        self.folder, self.rules, self.batch_sampler, self.collator = folder, rules, batch_sampler, collator
        self.datasets, self.embedder, self.progress, self.say, self.log = datasets, embedder, progress, say, log
        self.every = rules.steps or batch_sampler.steps_per_epoch
        self.tables = [source.table for source in batch_sampler.sources]
        self.file_names = file_names([table.name for table in self.tables])
        self.max_over_ranks = partial(largest_over_ranks, device=embedder.device) if equal_forwards else single_process

    def batches(self, steps: range, workers: int) -> Iterator[EmbedBatch]:
        """The batches of a range of steps of the run, in order."""
        on_rank_zero(partial(self._discard_after, steps.start))
        for step in range(0, steps.start, self.every):
            self._switch_tables(step)
        for span in spans(steps, self.every):
            if span.start % self.every == 0:
                self._mine(span.start)
                self._switch_tables(span.start)
            yield from load_batches(self.collator, self.batch_sampler, span, workers)

    def _discard_after(self, done: int) -> None:
        """Remove what was mined after step `done`, where the run resumes: the weights that mined it are lost."""
        shutil.rmtree(self.folder / EMBEDDINGS, ignore_errors=True)
        for path in self.folder.glob("step-*"):
            step = STEP.fullmatch(path.name)
            if step and int(step[1]) > done:
                shutil.rmtree(path)

    def _due(self, step: int) -> list[tuple[int, RefreshDataset]]:
        """The datasets that are mined at a step, with their indices."""
        return [
            (i, each)
            for i, each in enumerate(self.datasets)
            if each is not None and (step > 0 or not each.table.max_negatives)
        ]

    def _path(self, step: int, index: int) -> Path:
        return self.folder / f"step-{step}" / f"{self.file_names[index]}.arrow"

    def _mine(self, step: int) -> None:
        """Mine the datasets that are due at a step and whose file does not exist yet."""
        for i, dataset in self._due(step):
            path = self._path(step, i)
            if on_rank_zero(path.exists):
                continue
            retriever = DenseRetriever.encode(
                dataset.table.name,
                self.embedder,
                dataset.query_set,
                dataset.pool,
                query_max_length=self.collator.query_max_length,
                document_max_length=self.collator.document_max_length,
                folder=self.folder / EMBEDDINGS,
                max_over_ranks=self.max_over_ranks,
                progress=self.progress,
            )
            wanted, seed = self.collator.row_sampler.negatives, self.collator.row_sampler.seed + step
            result = mine_again(dataset, retriever, self.rules, negatives=wanted, seed=seed)
            on_rank_zero(partial(write_refreshed, path, dataset.table, result))
            on_rank_zero(partial(shutil.rmtree, self.folder / EMBEDDINGS))
            score, gap = hardness(result)
            metrics = {"negatives": len(result.negatives.values), "score": score, "below_positive": gap}
            self.log(step, {"refresh": {dataset.table.name: metrics}})
            self.say(f"step {step}: {dataset.table.name}: {refresh_line(result, wanted)}")

    def _switch_tables(self, step: int) -> None:
        """Train on the records that were mined at a step. Raises ValueError if their file is missing."""
        for i, dataset in self._due(step):
            path = self._path(step, i)
            if not path.exists():
                raise ValueError(
                    f"{path} is missing, and the run cannot go on as it began without it; put it back, or start a new "
                    "run"
                )
            self.tables[i] = RecordTable(path, dataset.table.name, dataset.table.instruction)
        self.batch_sampler.replace_tables(step, self.tables)
        self.collator.sources = [
            replace(source, table=table) for source, table in zip(self.batch_sampler.sources, self.tables, strict=True)
        ]


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for each dataset; those that are the same in Latin letters and digits also get their index."""
    safe = [re.sub(r"[^A-Za-z0-9.-]+", "_", name) for name in names]
    return [f"{name}~{i}" if safe.count(name) > 1 else name for i, name in enumerate(safe)]


def spans(steps: range, every: int) -> Iterator[range]:
    """Split the steps into ranges that end at multiples of `every`."""
    start = steps.start
    while start < steps.stop:
        stop = min(start - start % every + every, steps.stop)
        yield range(start, stop)
        start = stop
