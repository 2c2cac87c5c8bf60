"""The documents to write queries for: distinct texts of a minimum length, in random order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling.mining.pool import open_corpus
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Passages:
    """N documents drawn from a corpus; with the same seed a smaller draw is the beginning of a larger one.

    Attributes:
        name: Path of the corpus.
        texts: N texts in the order of the draw, read from disk on access.
        ids: Their ids in the corpus.
        positions: [N] int64, their positions in the corpus.
        text_ids: [N] int64, `text_id` of the texts.
        usable_texts: The texts of all documents that can be drawn, in the order of the draw: the N first.
        usable_ids: Their ids.
        usable_text_ids: int64, `text_id` of them.
        max_characters: Characters of a document that the model sees.
        documents: Number of non-empty documents of the corpus.
        repeated: Number of documents with the text of an earlier one.
        empty: Number of empty documents.
        short: Number of documents that are too short.
        truncated: Number of the N documents that are longer than `max_characters`.
    """

    name: str
    texts: Sequence[str]
    ids: Sequence[str]
    positions: Integers
    text_ids: Integers
    usable_texts: Sequence[str]
    usable_ids: Sequence[str]
    usable_text_ids: Integers
    max_characters: int
    documents: int
    repeated: int
    empty: int
    short: int
    truncated: int

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        limit: int | None,
        min_characters: int,
        max_characters: int,
        seed: int,
        progress: bool = False,
    ) -> "Passages":
        """Draw documents from a BEIR folder or a corpus.jsonl.

        Raises:
            ValueError: `file:line: field: reason`, no such file, or no document that is long enough.
        """
        collection = open_corpus(path, progress)
        texts = collection.texts()
        text_ids, lengths = hash_and_measure(texts)
        first = np.zeros(len(texts), dtype=bool)
        first[np.unique(text_ids, return_index=True)[1]] = True
        usable = np.flatnonzero(first & (lengths >= min_characters))
        if not len(usable):
            raise ValueError(f"{path}: none of {len(texts):,} documents has {min_characters} characters or more")
        usable = np.random.default_rng(seed).permutation(usable)
        order = usable[:limit]
        return cls(
            name=str(path),
            texts=collection.texts(order),
            ids=collection.ids(order),
            positions=order,
            text_ids=text_ids[order],
            usable_texts=collection.texts(usable),
            usable_ids=collection.ids(usable),
            usable_text_ids=text_ids[usable],
            max_characters=max_characters,
            documents=len(texts),
            repeated=int((~first).sum()),
            empty=len(collection.empty_lines),
            short=int((first & (lengths < min_characters)).sum()),
            truncated=int((lengths[order] > max_characters).sum()),
        )

    def __len__(self) -> int:
        return len(self.positions)

    def visible_text(self, index: int) -> str:
        """The beginning of a document that can be drawn, which the model sees."""
        return self.usable_texts[index][: self.max_characters]

    def __str__(self) -> str:
        left_out = {
            "empty": self.empty,
            "repeat another's text": self.repeated,
            "too short": self.short,
            "not drawn": self.documents - self.repeated - self.short - len(self),
        }
        counts = [f"{count:,} {why}" for why, count in left_out.items() if count]
        total = self.documents + self.empty
        return (
            f"{self.name}: {total:,} documents{': ' if counts else ''}{', '.join(counts)}; queries for {len(self):,}, "
            f"of which {self.truncated:,} are longer than the {self.max_characters:,} characters that the model sees"
        )


def hash_and_measure(texts: Sequence[str]) -> tuple[Integers, Integers]:
    """`text_id` and number of characters of each text, both [n] int64; each text is read once."""
    text_ids, lengths = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
    for index, text in enumerate(texts):
        text_ids[index], lengths[index] = text_id(text), len(text)
    return text_ids, lengths
