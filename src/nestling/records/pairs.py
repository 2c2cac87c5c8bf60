"""Rows of a query and its document or documents under any two names, with negatives, teacher scores or labels."""

from nestling.records import fields
from nestling.records.field_names import negative_fields
from nestling.records.fields import Row
from nestling.records.record import FieldError, Record

Scores = tuple[float, ...] | None


def read_pair(row: Row, query: str, document: str, instruction: str = "instruction") -> Record:
    """A query with a document or a list of documents, and negatives in fields of any known name.

    A list of documents is read as sentence-transformers writes a labelled list, if `labels` has a grade for each (0 for
    a negative), or `scores` a number for each and there are no other negatives (the positive is first). Otherwise all
    are positives. A single `label` or `score` makes a graded pair.
    """
    if row.get(document) is None:
        raise FieldError(document, "missing")
    positives, negatives = fields.documents(row, document), _negatives(row)
    grades, label = _label_fields(row)
    if grades or (isinstance(row[document], list) and row.get("scores") is not None and not negatives):
        positives, negatives, positive_scores, negative_scores = _labelled_list(row, document, grades)
    else:
        positive_scores, negative_scores = _teacher_scores(row, document, positives, negatives)
    return Record(
        query=fields.text(row, query),
        positives=positives,
        negatives=negatives,
        positive_scores=positive_scores,
        negative_scores=negative_scores,
        instruction=fields.optional_text(row, instruction),
        score=fields.number(row, label) if label else None,  # without it, a label of 0 would become a positive
    )


def read_sentences(row: Row, first: str, second: str) -> Record:
    """Two sentences, which are a graded pair unless there are negatives."""
    record = read_pair(row, first, second)
    if record.score is None and not record.negatives:
        raise FieldError(
            "score",
            "missing, or a field label; to train the pairs as positives name them: "
            f"columns: {{query: {first}, positive: {second}}}",
        )
    return record


def _negatives(row: Row) -> tuple[str, ...]:
    return tuple([text for field in negative_fields(tuple(row)) for text in fields.documents(row, field)])


def _label_fields(row: Row) -> tuple[str | None, str | None]:
    """The field with the grades of a list of documents, and the field with the label of one; None for none."""
    present = [field for field in ("score", "label", "labels") if row.get(field) is not None]
    lists = [field for field in present if isinstance(row[field], list)]
    numbers = [field for field in present if field not in lists]
    for several in (lists[1:], numbers[1:]):
        if several:
            raise FieldError(several[0], f"beside {present[0]}; expected one of the two, so remove or rename the other")
    return next(iter(lists), None), next(iter(numbers), None)


def _labelled_list(
    row: Row, document: str, grades: str | None
) -> tuple[tuple[str, ...], tuple[str, ...], Scores, Scores]:
    """Positives and negatives of a list of documents, and the teacher scores of each."""
    texts = fields.documents(row, document)
    labels = fields.numbers(row, grades, document, len(texts)) if grades else (1.0, *[0.0] * (len(texts) - 1))
    assert labels is not None
    if grades and _negatives(row):
        raise FieldError(grades, f"beside {negative_fields(tuple(row))[0]}; expected one of the two to hold negatives")
    if any(label != int(label) for label in labels):
        raise FieldError(str(grades), "expected whole grades, 0 for a negative; teacher scores belong into scores")
    scores = fields.numbers(row, "scores", document, len(texts))
    at = [[i for i, label in enumerate(labels) if (label > 0) == relevant] for relevant in (True, False)]
    positives, negatives = (tuple([texts[i] for i in indices]) for indices in at)
    positive_scores, negative_scores = (scores and tuple([scores[i] for i in indices]) for indices in at)
    return positives, negatives, positive_scores, negative_scores


def _teacher_scores(
    row: Row, document: str, positives: tuple[str, ...], negatives: tuple[str, ...]
) -> tuple[Scores, Scores]:
    """Of `scores`, which has those of the positives and the negatives in that order, or of a field for each."""
    together = fields.numbers(row, "scores", "positive and negatives together", len(positives) + len(negatives))
    if together is not None:
        return together[: len(positives)], together[len(positives) :]
    positive_field, negative_field = (
        next((name for name in names if row.get(name) is not None), names[0])
        for names in (("positive_scores", "pos_scores"), ("negative_scores", "neg_scores"))
    )
    return (
        fields.numbers(row, positive_field, document, len(positives)),
        fields.numbers(row, negative_field, "the negatives", len(negatives)),
    )
