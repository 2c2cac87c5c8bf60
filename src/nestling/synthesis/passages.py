"""The documents that queries are made for: each text once, none that is too short, in the order of asking."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from nestling.mining.pool import open_corpus
from nestling.records.record import text_id
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Passages:
    """N documents of a corpus, drawn; a smaller draw is the beginning of a larger one.

    Attributes:
        name: Where they come from.
        texts: N, in the order in which they are asked about, read from disk when asked for.
        ids: Their ids in the corpus.
        positions: [N] int64, their places in it.
        identities: [N] int64, `text_id` of the texts.
        max_characters: Of each the model sees so many.
        digest: Of all texts of the corpus and their order.
        documents: Documents of the corpus that have a text.
        repeated: Documents with the text of an earlier one.
        empty: Documents without a text.
        short: Documents that are too short.
        cut: How many of the N are longer than the model sees.
    """

    name: str
    texts: Sequence[str]
    ids: Sequence[str]
    positions: Integers
    identities: Integers
    max_characters: int
    digest: str
    documents: int
    repeated: int
    empty: int
    short: int
    cut: int

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
        """Draw from a BEIR folder's documents or a corpus.jsonl.

        Raises:
            ValueError: `file:line: field: reason`, no such file, or no document that is long enough.
        """
        collection = open_corpus(path, progress)
        texts = collection.texts()
        identities, lengths = np.empty(len(texts), np.int64), np.empty(len(texts), np.int64)
        for place, text in enumerate(texts):
            identities[place], lengths[place] = text_id(text), len(text)
        first = np.zeros(len(texts), dtype=bool)
        first[np.unique(identities, return_index=True)[1]] = True
        usable = np.flatnonzero(first & (lengths >= min_characters))
        if not len(usable):
            raise ValueError(f"{path}: none of {len(texts):,} documents has {min_characters} characters or more")
        order = np.random.default_rng(seed).permutation(usable)[:limit]
        return cls(
            name=str(path),
            texts=collection.texts(order),
            ids=collection.ids(order),
            positions=order,
            identities=identities[order],
            max_characters=max_characters,
            digest=xxhash.xxh3_64_hexdigest(identities.data),
            documents=len(texts),
            repeated=int((~first).sum()),
            empty=len(collection.empty_lines),
            short=int((first & (lengths < min_characters)).sum()),
            cut=int((lengths[order] > max_characters).sum()),
        )

    def __len__(self) -> int:
        return len(self.positions)

    def seen(self, number: int) -> str:
        """What the model sees of a document."""
        return self.texts[number][: self.max_characters]

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
            f"of which {self.cut:,} are longer than the {self.max_characters:,} characters that the model sees"
        )
