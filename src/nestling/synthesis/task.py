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
from nestling.synthesis.passage_sets import PassageSets
from nestling.synthesis.passages import Passages
from nestling.synthesis.query_spec import (
    MULTI_HOP,
    MULTI_HOP_MEANING,
    QueryOptions,
    QuerySpec,
    draw_query_spec,
    longest,
)

NOT_ASKED = "not asked"


@dataclass(frozen=True)
class SynthesisTask:
    """Queries to write: K for each of N documents, those of the first document first.

    Args:
        passages: The documents.
        passage_sets: The documents whose last query needs further passages.
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
    passage_sets: PassageSets
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
        """Of a document's first query `text_id` of the document; of others a hash of their number and passages."""
        document, *others = (int(self.passages.usable_text_ids[each]) for each in self.passages_of(index))
        number = index % self.num_queries
        parts = " ".join(map(str, (document, number, *others)))
        return xxhash.xxh3_64_intdigest(parts.encode()) >> 1 if number or others else document

    def passages_of(self, index: int) -> tuple[int, ...]:
        """The passages that a query needs, the first of which is its document."""
        document, is_last = self.document(index), (index + 1) % self.num_queries == 0
        return self.passage_sets.sets.get(document, (document,)) if is_last else (document,)

    def visible_texts(self, index: int) -> list[str]:
        """What the model sees of the passages that a query needs."""
        return [self.passages.visible_text(each) for each in self.passages_of(index)]

    def options_of(self, index: int) -> QueryOptions:
        """What the model may choose for a query: its share of the types, at random; of several passages one type."""
        if len(self.passages_of(index)) > 1:
            words = {longest(self.options.lengths): 1.0}
            return replace(self.options, question_types={MULTI_HOP: MULTI_HOP_MEANING}, lengths=words)
        document, number = int(self.passages.text_ids[self.document(index)]), index % self.num_queries
        types = self.options.question_types
        order = random.Random(f"{self.seed} types {document}").sample(list(types), len(types))
        own = order[number :: self.num_queries] or [order[number % len(order)]]
        return replace(self.options, question_types={name: types[name] for name in types if name in own})

    def spec(self, index: int) -> QuerySpec:
        """The properties that are drawn for a query."""
        rows = None if self.persona_rows is None else self.persona_rows[self.document(index)]
        personas = self.personas if rows is None else [self.personas[row] for row in rows]
        return draw_query_spec(self.query_id(index), personas, self.candidates, self.options_of(index), self.seed)

    def conversation(self, index: int) -> Conversation:
        """A new conversation about a query."""
        options = self.options_of(index)
        return converse(self.visible_texts(index), self.spec(index), options, self.attempts, self.min_grade)

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

    def positives(self, index: int, equal: Sequence[int]) -> list[int]:
        """The passages that answer a query, or equal ones of other documents."""
        return list(dict.fromkeys(passage for each in (index, *equal) for passage in self.passages_of(each)))

    def row(self, result: ConversationResult, positives: Sequence[int], instruction: str | None) -> dict[str, Any]:
        """The training row in the nestling dialect."""
        row: dict[str, Any] = {"query": result.query, "positives": [self.passages.usable_texts[i] for i in positives]}
        return row if instruction is None else row | {"instruction": instruction}

    def metadata(self, index: int, result: ConversationResult, positives: Sequence[int]) -> dict[str, Any]:
        """Ids of the document and of several positives, the properties that the query was to have, its grades."""
        assert result.configuration is not None
        spec = self.spec(index)
        drawn = {"length": f"{spec.least}-{spec.most}", "language": spec.language}
        grades = {"grades": result.judged[1]} if result.judged else {}
        several = {"positives": [self.passages.usable_ids[i] for i in positives]} if len(positives) > 1 else {}
        document = {"document": self.passages.ids[self.document(index)], **several}
        return {**document, **asdict(result.configuration), **drawn, **grades}


def lines_digest(texts: Sequence[str]) -> str:
    """Hash of several lines of text."""
    return xxhash.xxh3_64_hexdigest("\n".join(texts).encode())
