"""Hard negatives mined anew during training by the model as it is (ANCE, arXiv 2007.00808).

refresh/step-N/NAME.arrow    in the run folder: the rows of a dataset that training goes on with after step N

A resumed run takes from there what it had mined. Batches are planned as if one run had seen all of it: each row comes
once in a pass, and no text twice in a batch where that can be helped.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nestling.batches.embed_collation import Collator, TrainBatch
from nestling.batches.sampling import BatchSampler
from nestling.config import RefreshConfig
from nestling.distributed.ranks import on_rank_zero
from nestling.mining.mined import hardness
from nestling.mining.renewal import Minable, mine_anew, renewal_line, write_renewed
from nestling.mining.retrievers import Dense
from nestling.models.embedder import Embedder
from nestling.models.encoding import single_process
from nestling.records.table import RecordTable
from nestling.retrieval.collectives import largest_over_ranks
from nestling.training.loading import load_batches

STEP = re.compile(r"step-(\d+)")
VECTORS = ".vectors"


class Refresher:
    """Batches of a run, its hard negatives mined anew every so many steps. All ranks must use it alike.

    Datasets without hard negatives are mined before the first step too; others begin with those that they have.

    Args:
        folder: Where the mined rows go.
        rules: How often, and which candidates become negatives.
        batch_sampler: What the run trains on.
        collator: What makes its batches.
        minables: For each dataset its queries and documents; None for those that are not mined for.
        embedder: The model in training.
        equal_forwards: Whether its forward is a collective.
        progress: Show bars.
        say: Takes a line to print.
        log: Takes a step and its figures.
    """

    def __init__(
        self,
        folder: Path,
        rules: RefreshConfig,
        batch_sampler: BatchSampler,
        collator: Collator,
        minables: Sequence[Minable | None],
        embedder: Embedder,
        *,
        equal_forwards: bool,
        progress: bool,
        say: Callable[[str], None],
        log: Callable[[int, Mapping[str, object]], None],
    ) -> None:
        self.folder, self.rules, self.batch_sampler, self.collator = folder, rules, batch_sampler, collator
        self.minables, self.embedder, self.progress, self.say, self.log = minables, embedder, progress, say, log
        self.every = rules.steps or batch_sampler.steps_per_epoch
        self.tables = [source.table for source in batch_sampler.sources]
        self.max_over_ranks = partial(largest_over_ranks, device=embedder.device) if equal_forwards else single_process

    def batches(self, steps: range, workers: int) -> Iterator[TrainBatch]:
        """The batches of some steps of the run."""
        on_rank_zero(partial(self._forget, steps.start))
        for step in range(0, steps.start, self.every):
            self._take(step)
        for span in spans(steps, self.every):
            if span.start % self.every == 0:
                self._mine(span.start)
                self._take(span.start)
            yield from load_batches(self.collator, self.batch_sampler, span, workers)

    def _forget(self, done: int) -> None:
        """Remove what was mined after the checkpoint that the run goes on from: by weights that are lost."""
        shutil.rmtree(self.folder / VECTORS, ignore_errors=True)
        for path in self.folder.glob("step-*"):
            found = STEP.fullmatch(path.name)
            if found and int(found[1]) > done:
                shutil.rmtree(path)

    def _due(self, step: int) -> list[tuple[int, Minable]]:
        """The datasets that are mined at a step, by number."""
        return [
            (i, each)
            for i, each in enumerate(self.minables)
            if each is not None and (step > 0 or not each.table.max_negatives)
        ]

    def _path(self, step: int, table: RecordTable) -> Path:
        return self.folder / f"step-{step}" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', table.name)}.arrow"

    def _mine(self, step: int) -> None:
        """Mine for the datasets that are due and not yet mined."""
        for _, minable in self._due(step):
            path = self._path(step, minable.table)
            if on_rank_zero(path.exists):
                continue
            dense = Dense.encode(
                minable.table.name,
                self.embedder,
                minable.query_set,
                minable.pool,
                query_max_length=self.collator.query_max_length,
                document_max_length=self.collator.document_max_length,
                folder=self.folder / VECTORS,
                max_over_ranks=self.max_over_ranks,
                progress=self.progress,
            )
            wanted, seed = self.collator.row_sampler.negatives, self.collator.row_sampler.seed + step
            mined = mine_anew(minable, dense, self.rules, negatives=wanted, seed=seed)
            on_rank_zero(partial(write_renewed, path, minable.table, mined))
            on_rank_zero(partial(shutil.rmtree, self.folder / VECTORS))
            score, gap = hardness(mined)
            figures = {"negatives": len(mined.negatives.values), "score": score, "below_positive": gap}
            self.log(step, {"refresh": {minable.table.name: figures}})
            self.say(f"step {step}: {minable.table.name}: {renewal_line(mined, wanted)}")

    def _take(self, step: int) -> None:
        """Go on with what was mined at a step."""
        for i, minable in self._due(step):
            path = self._path(step, minable.table)
            if not path.exists():
                raise ValueError(
                    f"{path} is missing, and the run cannot go on as it began without it; put it back, or start a new "
                    "run"
                )
            self.tables[i] = RecordTable(path, minable.table.name, minable.table.instruction)
        self.batch_sampler.replace_tables(step, self.tables)
        self.collator.sources = [
            replace(source, table=table) for source, table in zip(self.batch_sampler.sources, self.tables, strict=True)
        ]


def spans(steps: range, every: int) -> Iterator[range]:
    """Parts of the steps that end at multiples of `every`."""
    start = steps.start
    while start < steps.stop:
        stop = min(start - start % every + every, steps.stop)
        yield range(start, stop)
        start = stop
