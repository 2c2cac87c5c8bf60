"""What is asked about which documents, put together; and how each of them ended."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from nestling.retrieval.metrics import Integers
from nestling.synthesis.brief import Brief, Choices, draw_brief
from nestling.synthesis.conversation import Conversation, Outcome, converse, replay
from nestling.synthesis.journal import Journal
from nestling.synthesis.passages import Passages
from nestling.synthesis.writers import Talk

NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Task:
    """Queries to make.

    Args:
        passages: N documents.
        choices: What all have in common.
        personas: All searchers.
        candidates: How many of them the model chooses from.
        suited: [N, candidates] int64, those that suit each document; None to draw from all.
        attempts: How often an answer is asked for until it can be used.
        seed: Of all draws.
    """

    passages: Passages
    choices: Choices
    personas: Sequence[str]
    candidates: int
    suited: Integers | None
    attempts: int
    seed: int

    def __len__(self) -> int:
        return len(self.passages)

    def document(self, number: int) -> int:
        """Its identity."""
        return int(self.passages.identities[number])

    def brief(self, number: int) -> Brief:
        """What was drawn for a document."""
        personas = self.personas if self.suited is None else [self.personas[each] for each in self.suited[number]]
        return draw_brief(self.document(number), personas, self.candidates, self.choices, self.seed)

    def conversation(self, number: int) -> Conversation:
        return converse(self.passages.seen(number), self.brief(number), self.choices, self.attempts)

    def talks(self, numbers: Sequence[int], journal: Journal, go_on: Callable[[], bool]) -> Iterator[Talk]:
        """Conversations that are recorded in a journal, begun one after the other for as long as `go_on` says so."""
        for number in numbers:
            if not go_on():
                return
            yield journal.recorded(self.document(number), self.conversation(number))

    def outcome(self, number: int, journal: Journal) -> Outcome | None:
        """How it ended with a document, by the journal; None if the journal's replies do not end it."""
        document = self.document(number)
        return replay(self.conversation(number), journal.of(document)) if journal.knows(document) else None

    def outcomes(self, journal: Journal) -> Iterator[tuple[int, Outcome]]:
        """Each document's number and how it ended, in the order of the corpus."""
        for number in np.argsort(self.passages.positions).tolist():
            why = journal.unanswered.get(self.document(number), NOT_ASKED)
            yield number, self.outcome(number, journal) or Outcome(None, None, why, ())

    def row(self, number: int, outcome: Outcome, instruction: str | None) -> dict[str, Any]:
        """A training row in our own dialect."""
        row: dict[str, Any] = {"query": outcome.query, "positives": [self.passages.texts[number]]}
        return row if instruction is None else row | {"instruction": instruction}

    def facts(self, number: int, outcome: Outcome) -> dict[str, Any]:
        """The document's id, and what its query was asked to be."""
        assert outcome.setup is not None
        brief = self.brief(number)
        drawn = {"length": f"{brief.least}-{brief.most}", "language": brief.language}
        return {"document": self.passages.ids[number], **asdict(outcome.setup), **drawn}


def digest(texts: Sequence[str]) -> str:
    """What tells whether some texts have changed."""
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())
