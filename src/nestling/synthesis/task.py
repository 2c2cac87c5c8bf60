"""A synthesis task: the documents, the properties of their queries, and the results."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
    """Queries to write: K for each of N documents, those of the first document first.

    Args:
        passages: The documents.
        num_queries: K. The types of query are shared out among the queries of a document.
        options: Options that are the same for all documents.
        personas: All personas.
        candidates: Number of personas that the model chooses from.
        persona_rows: [N, candidates] int64, indices of the personas nearest to each document; None to draw from all.
        attempts: Maximum number of requests in each step of a conversation.
        min_grade: The lowest grade of a query that is kept; None to judge none.
        seed: Seed of all random draws.
    """

    passages: Passages
    num_queries: int
    options: QueryOptions
    personas: Sequence[str]
    candidates: int
    persona_rows: Integers | None
    attempts: int
    min_grade: int | None
    seed: int

    def __len__(self) -> int:
        return self.num_queries * len(self.passages)

    def document(self, index: int) -> int:
        """Which document a query is for."""
        return index // self.num_queries

    def query_id(self, index: int) -> int:
        """Of a document's first query `text_id` of the document, of others a hash of that and their number."""
        document, number = int(self.passages.text_ids[self.document(index)]), index % self.num_queries
        return xxhash.xxh3_64_intdigest(f"{document} {number}".encode()) >> 1 if number else document

    def visible_text(self, index: int) -> str:
        """The passage that a query is for."""
        return self.passages.visible_text(self.document(index))

    def options_of(self, index: int) -> QueryOptions:
        """What the model may choose for a query: its share of the types, at random."""
        document, number = int(self.passages.text_ids[self.document(index)]), index % self.num_queries
        types = self.options.question_types
        order = random.Random(f"{self.seed} types {document}").sample(list(types), len(types))
        own = order[number :: self.num_queries] or [order[number % len(order)]]
        return replace(self.options, question_types={name: types[name] for name in types if name in own})

    def spec(self, index: int) -> QuerySpec:
        """The properties that are drawn for a query."""
        rows = None if self.persona_rows is None else self.persona_rows[self.document(index)]
        personas = self.personas if rows is None else [self.personas[row] for row in rows]
        return draw_query_spec(self.query_id(index), personas, self.candidates, self.options, self.seed)

    def conversation(self, index: int) -> Conversation:
        """A new conversation about a query."""
        options = self.options_of(index)
        return converse(self.visible_text(index), self.spec(index), options, self.attempts, self.min_grade)

    def conversations(
        self, indices: Sequence[int], journal: Journal, may_continue: Callable[[], bool]
    ) -> Iterator[RecordedConversation]:
        """Yield recorded conversations about queries until `may_continue` returns False."""
        for index in indices:
            if not may_continue():
                return
            yield journal.record(self.query_id(index), self.conversation(index))

    def result(self, index: int, journal: Journal) -> ConversationResult | None:
        """Result for a query from the completions in the journal; None if they do not complete the conversation."""
        query_id = self.query_id(index)
        return replay(self.conversation(index), journal.completions_of(query_id)) if journal.has(query_id) else None

    def results(self, journal: Journal) -> Iterator[tuple[int, ConversationResult]]:
        """Yield (index, result) of all queries, in the order of the corpus."""
        documents = np.argsort(self.passages.positions)
        for index in np.add.outer(self.num_queries * documents, np.arange(self.num_queries)).ravel().tolist():
            why = journal.unanswered.get(self.query_id(index), NOT_ASKED)
            yield index, self.result(index, journal) or ConversationResult(None, None, why, ())

    def row(
        self, index: int, result: ConversationResult, equal: Sequence[int], instruction: str | None
    ) -> dict[str, Any]:
        """The training row in the nestling dialect.

        Args:
            index: A query.
            result: Its result.
            equal: Equal queries of other documents.
            instruction: Task to write into the row.
        """
        documents = dict.fromkeys(self.document(each) for each in (index, *equal))
        positives = [self.passages.texts[document] for document in documents]
        row: dict[str, Any] = {"query": result.query, "positives": positives}
        return row if instruction is None else row | {"instruction": instruction}

    def metadata(self, index: int, result: ConversationResult) -> dict[str, Any]:
        """Id of the document, the properties that its query was to have, and its grades if it was judged."""
        assert result.configuration is not None
        spec = self.spec(index)
        drawn = {"length": f"{spec.least}-{spec.most}", "language": spec.language}
        grades = {"grades": result.judged[1]} if result.judged else {}
        document = self.passages.ids[self.document(index)]
        return {"document": document, **asdict(result.configuration), **drawn, **grades}


def lines_digest(texts: Sequence[str]) -> str:
    """Hash of several lines of text."""
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())
