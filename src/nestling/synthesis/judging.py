"""A language model judges how relevant pooled documents are to queries, in grades from 0 to 3.

The grades are those of UMBRELA (https://arxiv.org/abs/2406.06519) and of the TREC deep learning tracks. Each
(query, document) is a conversation of one request, recorded in a journal as those of `nestling.synthesis.task` are.

Shape legend: Q queries, P judged (query, document) pairs.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.metrics import Integers
from nestling.synthesis.answers import InvalidAnswer, find_json_object
from nestling.synthesis.chat_models import ChatModel, RecordedConversation
from nestling.synthesis.conversation import ChatRequest, Completion, ask_until_valid
from nestling.synthesis.journal import Journal

GRADES = {
    0: "the passage has nothing to do with the query",
    1: "the passage is about the subject of the query and does not answer it",
    2: "the passage answers the query in part or unclearly, or the answer is hidden among other things",
    3: "the passage is about the query and holds its exact answer",
}
PROMPT = """\
Judge how well a passage answers what somebody searched for. Think of what the person who sent the query wants to \
know, how well the passage meets that, and how far it can be trusted.

<query>
{query}
</query>

<passage>
{passage}
</passage>

Grades:
{grades}

Answer with one JSON object and nothing else: {{"grade": a number from 0 to 3}}"""

# A judgement of the model: a grade, or None where it gave none that can be used.
Grade = int | None
Judging = Generator[ChatRequest, Completion, Grade]


@dataclass(frozen=True)
class JudgingTask:
    """The pairs to judge.

    Args:
        data: Queries and documents.
        pools: Q arrays of int64: the documents to judge for each query, as positions in `data.documents`.
        second_share: Share of the pairs that are judged twice.
        max_characters: Characters of a document that the model sees.
        attempts: Maximum number of requests for a judgement.
        seed: Seed of the sampling and of which pairs are judged twice.
    """

    data: RetrievalSet
    pools: list[Integers]
    second_share: float
    max_characters: int
    attempts: int
    seed: int

    @cached_property
    def pairs(self) -> Integers:
        """[P, 2] int64: query and document of each pair, query by query."""
        queries = np.repeat(np.arange(len(self.pools)), [len(pool) for pool in self.pools])
        return np.stack([queries, np.concatenate(self.pools)], axis=1)

    def ids(self) -> Iterator[tuple[str, str]]:
        """(query id, document id) of each pair."""
        query_ids = list(self.data.query_ids)
        yield from ((query_ids[query], self.data.document_ids[document]) for query, document in self.pairs.tolist())

    @cached_property
    def twice(self) -> np.ndarray:
        """[P] bool: which pairs are judged twice."""
        return np.random.default_rng(self.seed).random(len(self.pairs)) < self.second_share

    @property
    def requests(self) -> int:
        """Requests if all answers can be used."""
        return len(self.pairs) + int(self.twice.sum())

    def judgements(self) -> Iterator[tuple[int, int]]:
        """(pair, pass) of all judgements; the second pass comes last."""
        yield from ((pair, 0) for pair in range(len(self.pairs)))
        yield from ((int(pair), 1) for pair in np.flatnonzero(self.twice))

    def prompt(self, pair: int) -> str:
        """What the model is asked about a pair."""
        query, document = self.pairs[pair].tolist()
        grades = "\n".join(f"{grade}: {meaning}" for grade, meaning in GRADES.items())
        passage = self.data.documents[document][: self.max_characters]
        return PROMPT.format(query=self.data.queries[query], passage=passage, grades=grades)

    def key(self, pair: int, turn: int) -> int:
        """The id of a judgement in the journal, by the texts."""
        query, document = self.pairs[pair].tolist()
        texts = f"{turn}\0{self.data.queries[query]}\0{self.data.documents[document]}"
        return xxhash.xxh3_64_intdigest(texts.encode("utf-8", "surrogatepass")) >> 1

    def conversation(self, pair: int, turn: int) -> Judging:
        """A new conversation about a pair."""
        start = (self.seed + self.key(pair, turn)) % 2**31
        try:
            return (yield from ask_until_valid(self.prompt(pair), read_grade, range(start, start + self.attempts), []))
        except InvalidAnswer:
            return None

    def pending(self, journal: Journal) -> list[tuple[int, int]]:
        """The judgements that the journal does not have; one of those of equal texts."""
        by_key = {self.key(*each): each for each in self.judgements() if self.grade(*each, journal) is NOT_JUDGED}
        return list(by_key.values())

    def conversations(self, judgements: Iterable[tuple[int, int]], journal: Journal) -> Iterator[RecordedConversation]:
        """Recorded conversations about them."""
        for each in judgements:
            yield journal.record(self.key(*each), self.conversation(*each))

    def grade(self, pair: int, turn: int, journal: Journal) -> Any:
        """The grade that the journal has for a pair; None for answers of no use, `NOT_JUDGED` for too few answers."""
        key = self.key(pair, turn)
        if not journal.has(key):
            return NOT_JUDGED
        conversation = self.conversation(pair, turn)
        try:
            next(conversation)
            for completion in journal.completions_of(key):
                conversation.send(completion)
        except StopIteration as end:
            return end.value
        return NOT_JUDGED


NOT_JUDGED = object()


def prompt_digest() -> str:
    """Hash of the prompt and the grades."""
    return xxhash.xxh3_64_hexdigest(f"{PROMPT}{GRADES}".encode())


def read_grade(text: str) -> int:
    """Parse the model's answer. Raises InvalidAnswer."""
    grade = find_json_object(text, "grade")["grade"]
    number = int(grade) if isinstance(grade, str) and grade.strip() in {"0", "1", "2", "3"} else grade
    if isinstance(number, bool) or not isinstance(number, int) or number not in GRADES:
        raise InvalidAnswer("unknown grade", f'"grade" is {str(grade)[:60]}, expected a number from 0 to 3')
    return number


def pool(candidates: Sequence[Sequence[Integers]], data: RetrievalSet) -> list[Integers]:
    """Q arrays of int64, ascending: the documents of all rankings and those that are known to be relevant."""
    return [
        np.unique(np.concatenate([relevant, *(each[query] for each in candidates)]))
        for query, relevant in enumerate(data.relevant)
    ]


def agreement(first: Integers, second: Integers, relevant_from: int) -> dict[str, float]:
    """How far two judgements of n pairs, both [n] int64, agree: shares, and Cohen's kappa of what is relevant."""
    same_relevance = (first >= relevant_from) == (second >= relevant_from)
    observed = float(same_relevance.mean())
    shares = [float((each >= relevant_from).mean()) for each in (first, second)]
    by_chance = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    kappa = 1.0 if by_chance == 1 else (observed - by_chance) / (1 - by_chance)
    return {"same grade": float((first == second).mean()), "same relevance": observed, "kappa": kappa}


def judge_all(task: JudgingTask, journal: Journal, model: ChatModel) -> None:
    """Ask about every judgement that the journal lacks, with a progress bar."""
    pending = task.pending(journal)
    total = len({task.key(*each) for each in task.judgements()})
    with tqdm(total=total, initial=total - len(pending), unit=" judgements", disable=None) as bar:

        def done() -> None:
            bar.update()

        if pending:
            model.run_conversations(task.conversations(pending, journal), done)
