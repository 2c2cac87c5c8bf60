"""The page on which a person looks at judgements and corrects them: one file, which saves what was changed as JSON."""

from dataclasses import dataclass

import numpy as np

from nestling import __version__
from nestling.pages import page_environment
from nestling.synthesis.judged_set import PERSON, JudgedSet, Judgement
from nestling.synthesis.judging import GRADES

# Characters of a document that are shown.
MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class ShownDocument:
    """A judged document as it is shown."""

    number: int
    id: str
    text: str
    grade: int
    by: str
    known: bool


@dataclass(frozen=True)
class ShownQuery:
    """A query with its judged documents, the best first."""

    number: int
    id: str
    text: str
    documents: list[ShownDocument]


def judgement_page(judged: JudgedSet, *, title: str, queries: int, seed: int) -> str:
    """The page, as HTML, with so many queries, drawn at random."""
    by_query: dict[int, list[Judgement]] = {}
    for each in judged.judgements:
        by_query.setdefault(each.query, []).append(each)
    drawn = np.random.default_rng(seed).permutation(sorted(by_query))[:queries]
    return (
        page_environment(__version__)
        .get_template("synthesis/judgements.html")
        .render(
            title=title,
            summary="\n".join(judged.lines()),
            grades=GRADES,
            count=len(judged.task.pools),
            earlier=[judged.row(each) for each in judged.judgements if each.by == PERSON],
            queries=[show(judged, number, by_query[query]) for number, query in enumerate(sorted(drawn.tolist()))],
        )
    )


def show(judged: JudgedSet, number: int, judgements: list[Judgement]) -> ShownQuery:
    data = judged.task.data
    ordered = sorted(judgements, key=lambda each: -each.grade)
    documents = [
        ShownDocument(
            i,
            data.document_ids[each.document],
            data.documents[each.document][:MAX_CHARACTERS],
            each.grade,
            each.by,
            each.known,
        )
        for i, each in enumerate(ordered)
    ]
    query = judgements[0].query
    return ShownQuery(number, data.query_ids[query], data.queries[query], documents)
