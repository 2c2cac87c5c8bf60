"""The documents that negatives are taken from, by position, each text once; and those that only have to be scored.

Whatever two ids or two files hold, a text is one document here: its identity is that of its bytes (`text_id`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nestling.records.beir import is_beir
from nestling.records.collection import Collection, open_collection, positions
from nestling.records.record import text_id
from nestling.records.store import open_batches
from nestling.records.table import RecordTable
from nestling.records.texts import TEXTS_PER_BLOCK, Texts
from nestling.records.words import folded_text_id
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Pool:
    """N documents with different texts, of which the first `size` can be negatives.

    The others are positives that the pool of documents lacks; they are there to be compared with.

    Attributes:
        name: Where the documents come from.
        texts: N, read from disk when asked for.
        identities: [N] int64, `text_id` of each.
        size: How many can be negatives.
        ids: The ids in the corpus, `size` of them; None for documents of records.
        listed: The ids of all M documents of the corpus, texts that repeat among them.
        row_of: [M] int64, which of the documents has the text of each.
    """

    name: str
    texts: Sequence[str]
    identities: Integers
    size: int
    ids: Sequence[str] | None = None
    listed: Sequence[str] = ()
    row_of: Integers | None = None

    def __len__(self) -> int:
        return len(self.identities)

    def find(self, identities: Integers) -> Integers:
        """[m] int64: the document with each identity; -1 where there is none."""
        order = np.argsort(self.identities)
        at = np.minimum(np.searchsorted(self.identities, identities, sorter=order), len(self) - 1)
        found = order[at]
        return np.where(self.identities[found] == identities, found, -1)

    def rows_of_ids(self, wanted: Iterable[str]) -> dict[str, int]:
        """The document of each id that is in the corpus."""
        if self.row_of is None:
            raise ValueError(
                f"{self.name}: documents of records have no ids; a run file needs a --corpus, or --data in the BEIR "
                "layout"
            )
        return {each: int(self.row_of[place]) for each, place in positions(self.listed, wanted).items()}

    def id_of(self, row: int) -> str:
        """The id in the corpus, or the identity of the text."""
        known = self.ids is not None and row < self.size
        return self.ids[row] if known and self.ids is not None else f"text:{self.identities[row]:016x}"

    def __str__(self) -> str:
        text = f"{self.size:,} different documents of {self.name}"
        if self.row_of is not None and len(self.row_of) > self.size:
            text += f" ({len(self.row_of) - self.size:,} repeat the text of another)"
        if len(self) > self.size:
            text += f"; {len(self) - self.size:,} documents of the records are not among them and only get scores"
        return text


def open_pool(table: RecordTable, corpus: Path | None, needed: Integers, *, progress: bool) -> Pool:
    """The documents of a corpus, or, without one, all positives and negatives of the records.

    Args:
        table: The records.
        corpus: A BEIR folder or a corpus.jsonl.
        needed: [n] int64, identities of documents of the records that have to be scored.
        progress: Show a bar for conversions that take more than a second.

    Raises:
        ValueError: `file:line: field: reason`; also for a corpus without a text.
    """
    if corpus is None:
        texts, identities = distinct_documents(table, np.zeros(0, np.int64), None)
        return Pool(f"the records of {table.name}", texts, identities, len(identities))
    collection = open_corpus(corpus, progress)
    if not len(collection):
        raise ValueError(f"{corpus}: no document has a text; expected at least one")
    identities = np.fromiter(map(text_id, collection.texts()), np.int64, len(collection))
    _, first, inverse = np.unique(identities, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rows = first[order]
    row_of = np.argsort(order)[inverse]
    more, more_identities = distinct_documents(table, identities[rows], needed)
    return Pool(
        name=str(corpus),
        texts=Joined([collection.texts(rows), more]),
        identities=np.concatenate([identities[rows], more_identities]),
        size=len(rows),
        ids=collection.ids(rows),
        listed=collection.ids(),
        row_of=row_of,
    )


def open_corpus(path: Path, progress: bool) -> Collection:
    """The documents of a BEIR folder or a corpus.jsonl."""
    if path.is_dir() and is_beir(path):
        path = path / "corpus.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path}: file: there is no such file; expected a folder in the BEIR layout or its corpus.jsonl"
        )
    return open_collection(path, "corpus", None, progress)


def distinct_documents(table: RecordTable, known: Integers, wanted: Integers | None) -> tuple[Sequence[str], Integers]:
    """Texts and identities of the documents of records that are not among `known`, and among `wanted` if given."""
    positives, negatives = flat_values(table, "positive_ids"), flat_values(table, "negative_ids")
    identities = np.concatenate([positives, negatives])
    take = np.zeros(len(identities), dtype=bool)
    take[np.unique(identities, return_index=True)[1]] = True
    take &= ~np.isin(identities, known)
    if wanted is not None:
        take &= np.isin(identities, wanted)
    of_positives, of_negatives = np.split(take, [len(positives)])
    texts = [
        Texts(table.path, "positives", np.flatnonzero(of_positives)),
        Texts(table.path, "negatives", np.flatnonzero(of_negatives)),
    ]
    return Joined(texts), identities[take]


def flat_values(table: RecordTable, name: str) -> Integers:
    """[n] int64: the values of a list column, of all rows one after the other."""
    parts = [batch.column(name).flatten().to_numpy() for batch in open_batches(table.path)[0]]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def near_identities(pool: Pool, rows: Integers) -> Integers:
    """[m] int64, `folded_text_id` of the texts of some documents; each is read once."""
    different, which = np.unique(rows, return_inverse=True)
    found = np.empty(len(different), np.int64)
    for start in range(0, len(different), TEXTS_PER_BLOCK):
        texts: list[str] = cast(Any, pool.texts)[different[start : start + TEXTS_PER_BLOCK]]
        found[start : start + len(texts)] = [folded_text_id(text) for text in texts]
    return found[which]


class Joined(Sequence[str]):
    """Some sequences of texts as one; an int, a slice of step 1 or an array of positions, as `Texts` takes them."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])  # [parts + 1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._span(*index.indices(len(self)))
        if isinstance(index, np.ndarray):
            return self._take(index)
        return self._take(np.array([index]))[0]

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part

    def _span(self, start: int, stop: int, step: int) -> list[str]:
        assert step == 1
        texts: list[str] = []
        for part, first in zip(self._parts, self._starts.tolist(), strict=False):
            texts += part[max(start - first, 0) : max(stop - first, 0)]
        return texts

    def _take(self, rows: Integers) -> list[str]:
        found = np.empty(len(rows), dtype=object)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(part_of).tolist():
            at = np.flatnonzero(part_of == part)
            texts: Any = self._parts[part]
            found[at] = texts[rows[at] - self._starts[part]]
        taken: list[str] = found.tolist()
        return taken
