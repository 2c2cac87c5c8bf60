"""Made queries that say the same as another: equal in letters and digits, or alike in meaning by an embedder.

The best graded query of those that say the same remains, of equal grades the first one in the corpus.

1. Equal queries of one document are one. Equal queries of several documents become one row that has the passages of all
   as positives: each was written for that query, and judged with it.
2. Of queries alike in meaning, of one document or several, the others are dropped. Their passages do not become
   positives, since nothing has said that they answer the query that remains: cosines hardly tell queries apart that
   differ in a name or number, whose passages are each other's best negatives.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from nestling.mining.retrieved import Scores
from nestling.models.embedder import Embedder
from nestling.records.record import text_id
from nestling.records.words import folded_text_id
from nestling.retrieval.metrics import Integers
from nestling.synthesis.conversation import ConversationResult
from nestling.synthesis.embedding import embed
from nestling.synthesis.near_queries import earlier_neighbours
from nestling.synthesis.task import SynthesisTask

REPEATED = "repeat a query of their document"
MERGED = "in the row of another document's equal query"
MEANS_OWN = "mean the same as a query of their document"
MEANS_OTHER = "mean the same as another document's query"
EXAMPLES = 5

Result = tuple[int, ConversationResult]


@dataclass(frozen=True)
class Similarity:
    """When two queries mean the same.

    Args:
        embedder: The model.
        least: The lowest cosine of two that do.
    """

    embedder: Embedder
    least: float


@dataclass(frozen=True)
class MadeQueries:
    """n queries, the best graded first.

    Args:
        indices: [n] int64, their indices in the task.
        texts: The queries.
    """

    indices: Integers
    texts: list[str]

    @classmethod
    def of(cls, results: Iterable[Result]) -> "MadeQueries":
        """The queries of results in the order of the corpus."""
        indices, texts, grades = [], [], []
        for index, result in results:
            if result.query is not None:
                indices.append(index)
                texts.append(result.query)
                grades.append(mean_grade(result))
        order = np.argsort(-np.array(grades), kind="stable")
        return cls(np.array(indices, np.int64)[order], [texts[at] for at in order.tolist()])


@dataclass
class Duplicates:
    """The queries that say the same as another.

    Attributes:
        failures: Index of a query that gets no row -> why.
        merged: Index of a query -> the indices of equal ones of other documents.
        examples: The least alike of those that are dropped for their meaning, as lines to print.
    """

    failures: dict[int, str] = field(default_factory=dict)
    merged: dict[int, list[int]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def applied(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, without the queries that get no row."""
        for index, result in results:
            failure = self.failures.get(index)
            yield index, result if failure is None else replace(result, query=None, failure=failure)

    def add(self, task: SynthesisTask, index: int, other: int, equal: bool) -> None:
        """Note that a query is equal to another one, which remains, or means the same."""
        own = task.document(index) == task.document(other)
        if equal and not own:
            self.merged.setdefault(other, []).append(index)
        self.failures[index] = (REPEATED if own else MERGED) if equal else MEANS_OWN if own else MEANS_OTHER


def find_duplicates(
    task: SynthesisTask, results: Iterable[Result], similarity: Similarity | None, *, progress: bool = False
) -> Duplicates:
    """Look for queries that say the same as another.

    Args:
        task: What the queries were asked for.
        results: All results, in the order of the corpus.
        similarity: When two mean the same; None for equal ones alone.
        progress: Show a bar while queries are encoded.
    """
    made, duplicates = MadeQueries.of(results), Duplicates()
    equal = first_equals(made.texts)
    remaining = np.arange(len(equal))
    if similarity is not None:
        distinct = np.flatnonzero(equal == remaining)
        remaining[distinct], cosines = first_alike(made.texts, distinct, similarity, progress)
        duplicates.examples = example_lines(made.texts, distinct, remaining[distinct], cosines)
    others = remaining[equal]
    for at in np.flatnonzero(others != np.arange(len(others))).tolist():
        other = int(others[at])
        duplicates.add(task, int(made.indices[at]), int(made.indices[other]), equal=bool(equal[at] == other))
    return duplicates


def first_equals(texts: list[str]) -> Integers:
    """[n] int64: of each text the first one with the same letters and digits, which may be itself."""
    ids = np.array([folded_text_id(text) for text in texts], np.int64)
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    equals: Integers = first[which]
    return equals


def first_alike(
    texts: list[str], distinct: Integers, similarity: Similarity, progress: bool
) -> tuple[Integers, Scores]:
    """Of each of m distinct texts the earlier one that remains in its place, or itself, and the cosine: [m] each."""
    chosen = [texts[at] for at in distinct.tolist()]
    ids = np.array([text_id(text) for text in chosen], np.int64)
    label = "queries" if progress else None
    vectors = embed(similarity.embedder, chosen, ids, kind="query", progress=label)
    neighbours, cosines = earlier_neighbours(vectors, similarity.least, similarity.embedder.device)
    return distinct[np.where(neighbours < 0, np.arange(len(distinct)), neighbours)], cosines


def example_lines(texts: list[str], distinct: Integers, remaining: Integers, cosines: Scores) -> list[str]:
    """The queries with the lowest cosines of those that have one, with the query that remains."""
    dropped = np.flatnonzero(remaining != distinct)
    chosen = dropped[np.argsort(cosines[dropped], kind="stable")[:EXAMPLES]]
    pairs = zip(distinct[chosen].tolist(), remaining[chosen].tolist(), cosines[chosen].tolist(), strict=True)
    return [f"  {cosine:.3f}: {texts[one]!r} dropped for {texts[other]!r}" for one, other, cosine in pairs]


def mean_grade(result: ConversationResult) -> float:
    """The mean grade of a query over the criteria; 0 if it was not judged."""
    return float(np.mean(list(result.judged[1].values()))) if result.judged else 0.0
