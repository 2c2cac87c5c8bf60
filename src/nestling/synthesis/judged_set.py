"""A test set of judged documents: whose judgements they are, how far they agree, and the files.

corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv    the set in the BEIR layout; all documents, and the queries judged
judgements.jsonl                                every judgement: query-id, corpus-id, grade, by, and the second grade
judgements.html                                 some queries with their documents, for a person to correct
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.files import replace_text, write_jsonl
from nestling.records.judged_by import JUDGEMENTS
from nestling.records.query_groups import alone
from nestling.run_files import reading
from nestling.synthesis.journal import Journal
from nestling.synthesis.judging import GRADES, NOT_JUDGED, JudgingTask, agreement

PERSON = "person"
QRELS = "query-id\tcorpus-id\tscore\n"
# A person's grades by (query id, document id).
Corrections = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Judgement:
    """A judgement.

    Args:
        query: Index of the query.
        document: Position of the document.
        grade: From 0 to 3.
        by: The model's name, or `PERSON`.
        known: Whether the data called the document relevant.
        model: What the model said; None where it gave no grade.
        second: What it said when it was asked again; None if it was not.
    """

    query: int
    document: int
    grade: int
    by: str
    known: bool
    model: int | None
    second: int | None


@dataclass(frozen=True)
class JudgedSet:
    """All judgements of a task.

    Args:
        task: What was judged.
        judgements: Of each pair that got a grade.
        failed: Pairs without one, which count as not relevant.
        unused: A person's grades of other pairs.
        relevant_from: Lowest grade that counts as relevant.
    """

    task: JudgingTask
    judgements: list[Judgement]
    failed: int
    unused: int
    relevant_from: int

    @classmethod
    def read(
        cls, task: JudgingTask, journal: Journal, model: str, corrections: Corrections, relevant_from: int
    ) -> "JudgedSet":
        """Put together the journal's grades and a person's, which replace them."""
        data, judgements, failed = task.data, list[Judgement](), 0
        ids = list(task.ids())
        for pair, (query, document) in enumerate(task.pairs.tolist()):
            said = [as_grade(task.grade(pair, turn, journal)) for turn in (0, 1)]
            corrected = corrections.get(ids[pair])
            grade = said[0] if corrected is None else corrected
            if grade is None:
                failed += 1
                continue
            by, known = model if corrected is None else PERSON, document in data.relevant[query]
            judgements.append(Judgement(query, document, grade, by, bool(known), *said))
        return cls(task, judgements, failed, len(corrections.keys() - ids), relevant_from)

    def is_relevant(self, judgement: Judgement) -> bool:
        return judgement.grade >= self.relevant_from

    def lines(self) -> Iterator[str]:
        """What was judged, by whom, and how far it can be trusted."""
        grades = Counter(each.grade for each in self.judgements)
        shown = ", ".join(f"{grade}: {grades[grade]:,}" for grade in GRADES)
        by = ", ".join(f"{count:,} by {name}" for name, count in Counter(each.by for each in self.judgements).items())
        yield f"{len(self.judgements):,} documents of {len(self.task.pools):,} queries judged, {by}; grades {shown}"
        if self.failed:
            yield f"  {self.failed:,} got no grade and count as not relevant"
        if self.unused:
            yield f"  {self.unused:,} grades of a person are of documents that are not judged here, and are left out"
        answered = {each.query for each in self.judgements if self.is_relevant(each)}
        if len(answered) < len(self.task.pools):
            yield f"  {len(self.task.pools) - len(answered):,} queries have no relevant document and are left out"
        known = [each for each in self.judgements if each.known]
        if known:
            share = f"{sum(map(self.is_relevant, known)) / len(known):.0%}"
            yield f"  of {len(known):,} documents called relevant by the data, {share} got {self.relevant_from} or more"
        twice = [(each.model, each.second) for each in self.judgements if None not in (each.model, each.second)]
        if twice:
            first, second = np.array(twice).T
            found = agreement(first, second, self.relevant_from)
            yield (
                f"  {len(twice):,} judged twice: the same grade {found['same grade']:.0%}, the same relevance "
                f"{found['same relevance']:.0%}, Cohen's kappa of relevance {found['kappa']:.2f}"
            )
        corrected = [each for each in self.judgements if each.by == PERSON and each.model is not None]
        if corrected:
            same = sum(each.grade == each.model for each in corrected) / len(corrected)
            yield f"  {len(corrected):,} graded by a person, who gave the model's grade to {same:.0%}"

    def write(self, folder: Path, split: str) -> None:
        """Write the set, and every judgement, into an existing folder. Raises ValueError if nothing is relevant."""
        data = self.task.data
        relevant = [each for each in self.judgements if self.is_relevant(each)]
        if not relevant:
            raise ValueError(
                f"no document got grade {self.relevant_from} or more, so there is nothing to find; look at the "
                "journal, or set --relevant_from 1"
            )
        ids = zip(data.document_ids, data.documents, strict=True)
        write_jsonl(folder / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for name, text in ids))
        kept = {each.query for each in relevant}
        write_jsonl(folder / "queries.jsonl", map(self.query, sorted(kept)))
        rows = (self.qrel(each) for each in self.judgements if each.query in kept)
        (folder / "qrels").mkdir()
        replace_text(folder / "qrels" / f"{split}.tsv", QRELS + "".join(rows))
        write_jsonl(folder / JUDGEMENTS, map(self.row, self.judgements))

    def query(self, query: int) -> dict[str, Any]:
        """A line of queries.jsonl, with the group of queries that the data names."""
        data, identifier = self.task.data, self.task.data.query_ids[query]
        group = None if data.groups is None else data.groups[query]
        known = {} if group in (None, alone(identifier)) else {"metadata": {"group": group}}
        return {"_id": identifier, "text": data.queries[query], **known}

    def qrel(self, judgement: Judgement) -> str:
        """A line of qrels/SPLIT.tsv, whose scores count from the lowest grade that is relevant."""
        ids = self.task.data.query_ids[judgement.query], self.task.data.document_ids[judgement.document]
        return f"{ids[0]}\t{ids[1]}\t{max(0, judgement.grade - self.relevant_from + 1)}\n"

    def row(self, judgement: Judgement) -> dict[str, Any]:
        """A line of judgements.jsonl."""
        data = self.task.data
        return {
            "query-id": data.query_ids[judgement.query],
            "corpus-id": data.document_ids[judgement.document],
            "grade": judgement.grade,
            "by": judgement.by,
            "second": judgement.second,
        }


def require_plain_ids(task: JudgingTask) -> None:
    """Raise ValueError for an id that would break a line of qrels, which reading it refuses."""
    broken = next((each for pair in task.ids() for each in pair if any(mark in each for mark in "\t\r\n")), None)
    if broken is not None:
        raise ValueError(
            f"{task.data.name}: the id {broken!r} has a tab or a line end, which separate the ids of qrels; give it "
            "another one"
        )


def as_grade(said: Any) -> int | None:
    return None if said is NOT_JUDGED else said


def require_some(corrections: Corrections, task: JudgingTask, path: str) -> None:
    """Raise ValueError unless one of the corrections, if there are any, is of what is judged."""
    if corrections and corrections.keys().isdisjoint(task.ids()):
        query, document = next(iter(corrections))
        raise ValueError(
            f"{path}: none of its {len(corrections):,} grades is of a document that is judged here (the first: query "
            f"{query}, document {document}); expected those of a page of {task.data.name}"
        )


def read_corrections(path: Path) -> Corrections:
    """What the page saved. Raises ValueError for another file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected what the page of judgements saved")
    with reading(path, "save it again from judgements.html"):
        rows = json.loads(path.read_text(encoding="utf-8"))["corrections"]
        found = {(str(row["query-id"]), str(row["corpus-id"])): int(row["grade"]) for row in rows}
    wrong = [grade for grade in found.values() if grade not in GRADES]
    if wrong:
        raise ValueError(f"{path}: a grade is {wrong[0]}, expected 0 to 3")
    return found
