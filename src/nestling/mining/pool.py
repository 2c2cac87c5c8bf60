"""The pool: the documents that negatives are taken from, and positives that only have to be scored.

Equal texts are one document, whatever their ids or files are: `text_id` identifies a text by its bytes. Elsewhere in
mining a document is given by its position in the pool.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nestling.records.arrow_files import open_batches
from nestling.records.collection import Collection, open_collection, positions
from nestling.records.record import text_id
from nestling.records.table import RecordTable
from nestling.records.texts import TEXTS_PER_BLOCK, Texts
from nestling.records.words import folded_text_id
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Pool:
    """N documents with different texts, of which only the first `size` are retrieved and can be negatives.

    The others are documents of the records that the corpus lacks; they are scored, since positives are compared with.

    Attributes:
        name: Where the documents come from.
        texts: N texts, read from disk on access.
        identities: [N] int64, `text_id` of each.
        size: How many can be negatives.
        ids: Of the first `size` documents, their ids in the corpus; None without a corpus.
        corpus_ids: The ids of all M documents of the corpus, those with repeated texts included.
        position_of: [M] int64, the position in the pool of each document of the corpus; None without a corpus.
    """

    name: str
    texts: Sequence[str]
    identities: Integers
    size: int
    ids: Sequence[str] | None = None
    corpus_ids: Sequence[str] = ()
    position_of: Integers | None = None

    def __len__(self) -> int:
        return len(self.identities)

    def find(self, identities: Integers) -> Integers:
        """[m] int64: the position of the document with each identity; -1 where there is none."""
        order = np.argsort(self.identities)
        at = np.minimum(np.searchsorted(self.identities, identities, sorter=order), len(self) - 1)
        nearest = order[at]
        return np.where(self.identities[nearest] == identities, nearest, -1)

    def positions_of_ids(self, wanted: Iterable[str]) -> dict[str, int]:
        """The position of each id that is in the corpus. Raises ValueError without a corpus."""
        if self.position_of is None:
            raise ValueError(
                f"{self.name}: documents of records have no ids; a run file needs a --corpus, or --data in the BEIR "
                "layout"
            )
        return {each: int(self.position_of[i]) for each, i in positions(self.corpus_ids, wanted).items()}

    def id_of(self, position: int) -> str:
        """The id of a document in the corpus, or "text:" and its `text_id` for one that is not in it."""
        if self.ids is not None and position < self.size:
            return self.ids[position]
        return f"text:{self.identities[position]:016x}"

    def __str__(self) -> str:
        text = f"{self.size:,} different documents of {self.name}"
        if self.position_of is not None and len(self.position_of) > self.size:
            text += f" ({len(self.position_of) - self.size:,} repeat the text of another)"
        if len(self) > self.size:
            text += f"; {len(self) - self.size:,} documents of the records are not among them and only get scores"
        return text


def open_pool(table: RecordTable, corpus: Path | None, needed: Integers, *, progress: bool) -> Pool:
    """The pool of a corpus; without a corpus, of all positives and negatives of the records.

    Args:
        table: The records.
        corpus: A BEIR folder or a corpus.jsonl.
        needed: [n] int64, `text_id` of the documents of the records that have to be in the pool, if only to be scored.
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
    distinct = first[order]
    position_of = np.argsort(order)[inverse]
    more, more_identities = distinct_documents(table, identities[distinct], needed)
    return Pool(
        name=str(corpus),
        texts=ConcatenatedTexts([collection.texts(distinct), more]),
        identities=np.concatenate([identities[distinct], more_identities]),
        size=len(distinct),
        ids=collection.ids(distinct),
        corpus_ids=collection.ids(),
        position_of=position_of,
    )


def open_corpus(path: Path, progress: bool) -> Collection:
    """The documents of a BEIR folder or a corpus.jsonl."""
    if path.is_dir():
        if not (path / "corpus.jsonl").is_file():
            raise ValueError(
                f"{path}: folder: it holds no corpus.jsonl; expected a folder in the BEIR layout or its corpus.jsonl; "
                f"found {', '.join(sorted(file.name for file in path.iterdir())[:8]) or 'nothing'}"
            )
        path = path / "corpus.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path}: file: there is no such file; expected a folder in the BEIR layout or its corpus.jsonl"
        )
    return open_collection([path], "corpus", None, progress)


def distinct_documents(table: RecordTable, known: Integers, wanted: Integers | None) -> tuple[Sequence[str], Integers]:
    """Texts and identities of the documents of the records that are not in `known` and, if given, are in `wanted`."""
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
    return ConcatenatedTexts(texts), identities[take]


def flat_values(table: RecordTable, name: str) -> Integers:
    """[n] int64: the values of a list column of a table, all rows concatenated."""
    parts = [batch.column(name).flatten().to_numpy() for batch in open_batches(table.path)[0]]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def folded_identities(pool: Pool, documents: Integers) -> Integers:
    """[m] int64, `folded_text_id` of the text of each document; repeated documents are read once."""
    distinct, which = np.unique(documents, return_inverse=True)
    folded = np.empty(len(distinct), np.int64)
    for start in range(0, len(distinct), TEXTS_PER_BLOCK):
        texts: list[str] = cast(Any, pool.texts)[distinct[start : start + TEXTS_PER_BLOCK]]
        folded[start : start + len(texts)] = [folded_text_id(text) for text in texts]
    return folded[which]


class ConcatenatedTexts(Sequence[str]):
    """Several sequences of texts as one; indexed as `Texts`, by an int, a slice of step 1 or an array of positions."""

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

    def _take(self, positions: Integers) -> list[str]:
        taken = np.empty(len(positions), dtype=object)
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        for part in np.unique(part_of).tolist():
            at = np.flatnonzero(part_of == part)
            texts: Any = self._parts[part]
            taken[at] = texts[positions[at] - self._starts[part]]
        as_list: list[str] = taken.tolist()
        return as_list
