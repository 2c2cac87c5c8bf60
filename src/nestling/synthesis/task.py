"""A synthesis task: the documents, the properties of their queries, and the results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from nestling.retrieval.metrics import Integers
from nestling.synthesis.chat_models import RecordedConversation
from nestling.synthesis.conversation import Conversation, ConversationResult, converse, replay
from nestling.synthesis.journal import Journal
from nestling.synthesis.passages import Passages
from nestling.synthesis.query_spec import QueryOptions, QuerySpec, draw_query_spec

NOT_ASKED = "not asked"


@dataclass(frozen=True)
class SynthesisTask:
    """Queries to write for N documents.

    Args:
        passages: The documents.
        options: Options that are the same for all documents.
        personas: All personas.
        candidates: Number of personas that the model chooses from.
        persona_rows: [N, candidates] int64, indices of the personas nearest to each document; None to draw from all.
        attempts: Maximum number of requests in each step of a conversation.
        seed: Seed of all random draws.
    """

    passages: Passages
    options: QueryOptions
    personas: Sequence[str]
    candidates: int
    persona_rows: Integers | None
    attempts: int
    seed: int

    def __len__(self) -> int:
        return len(self.passages)

    def document_id(self, index: int) -> int:
        """`text_id` of a document."""
        return int(self.passages.text_ids[index])

    def spec(self, index: int) -> QuerySpec:
        """The properties that are drawn for the query of a document."""
        rows = None if self.persona_rows is None else self.persona_rows[index]
        personas = self.personas if rows is None else [self.personas[row] for row in rows]
        return draw_query_spec(self.document_id(index), personas, self.candidates, self.options, self.seed)

    def conversation(self, index: int) -> Conversation:
        """A new conversation about a document."""
        return converse(self.passages.visible_text(index), self.spec(index), self.options, self.attempts)

    def conversations(
        self, indices: Sequence[int], journal: Journal, may_continue: Callable[[], bool]
    ) -> Iterator[RecordedConversation]:
        """Yield recorded conversations about documents until `may_continue` returns False."""
        for index in indices:
            if not may_continue():
                return
            yield journal.record(self.document_id(index), self.conversation(index))

    def result(self, index: int, journal: Journal) -> ConversationResult | None:
        """Result for a document from the completions in the journal; None if they do not complete the conversation."""
        document_id = self.document_id(index)
        return (
            replay(self.conversation(index), journal.completions_of(document_id)) if journal.has(document_id) else None
        )

    def results(self, journal: Journal) -> Iterator[tuple[int, ConversationResult]]:
        """Yield (index, result) of all documents, in the order of the corpus."""
        for index in np.argsort(self.passages.positions).tolist():
            why = journal.unanswered.get(self.document_id(index), NOT_ASKED)
            yield index, self.result(index, journal) or ConversationResult(None, None, why, ())

    def row(self, index: int, result: ConversationResult, instruction: str | None) -> dict[str, Any]:
        """The training row in the nestling dialect."""
        row: dict[str, Any] = {"query": result.query, "positives": [self.passages.texts[index]]}
        return row if instruction is None else row | {"instruction": instruction}

    def metadata(self, index: int, result: ConversationResult) -> dict[str, Any]:
        """Id of the document and the properties that its query was to have."""
        assert result.configuration is not None
        spec = self.spec(index)
        drawn = {"length": f"{spec.least}-{spec.most}", "language": spec.language}
        return {"document": self.passages.ids[index], **asdict(result.configuration), **drawn}


def lines_digest(texts: Sequence[str]) -> str:
    """Hash of several lines of text."""
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())
