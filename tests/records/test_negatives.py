"""No field that holds negatives or teacher scores is left out without a word."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import Record, RecordTable, load_records

PAIRS = [
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "response"),
    ("sentence1", "sentence2"),
    *(
        (query, document)
        for query in ("query", "question")
        for document in ("answer", "document", "passage", "context")
    ),
]
OWL, HEN, DUCK, LARK = "Owls hunt at night.", "Hens sleep at night.", "Ducks swim on ponds.", "Larks sing at dawn."
BIRD = "which bird hunts at night"


def load(folder: Path, *rows: Any, **options: Any) -> RecordTable:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_records(path, cache_dir=folder / "cache", **options)


def refusal(folder: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"rows\.jsonl:") as error:
        load(folder, *rows, **options)
    return str(error.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(("query", "document"), PAIRS)
def test_every_format_of_mine_hard_negatives(tmp_path: Path, query: str, document: str) -> None:
    pair, mined = {query: BIRD, document: OWL}, (HEN, DUCK, LARK)
    listed = {query: BIRD, document: [OWL, *mined]}
    numbered = {f"negative_{i}": text for i, text in enumerate(mined, 1)}
    scored = Record(BIRD, (OWL,), mined, (0.9,), (0.3, 0.2, 0.1))
    for row, expected in (
        (pair | numbered, Record(BIRD, (OWL,), mined)),
        (pair | numbered | {"scores": [0.9, 0.3, 0.2, 0.1]}, scored),
        (pair | {"negative": HEN}, Record(BIRD, (OWL,), (HEN,))),
        (pair | {"negative": HEN, "scores": [0.9, 0.3]}, Record(BIRD, (OWL,), (HEN,), (0.9,), (0.3,))),
        (listed | {"labels": [1, 0, 0, 0]}, Record(BIRD, (OWL,), mined)),
        (listed | {"scores": [0.9, 0.3, 0.2, 0.1]}, scored),
        (listed | {"labels": [1, 0, 0, 0], "scores": [0.9, 0.3, 0.2, 0.1]}, scored),
    ):
        (tmp_path / "rows.jsonl").unlink(missing_ok=True)
        table = load(tmp_path, row)
        assert (table[0], table.has_scores, table.summary.ignored) == (
            expected,
            expected.positive_scores is not None,
            (),
        )
    for field in ("label", "score"):
        graded = load(tmp_path, pair | {field: 1}, {query: BIRD, document: HEN, field: 0})
        assert [graded[0], graded[1]] == [Record(BIRD, (OWL,), score=1.0), Record(BIRD, (HEN,), score=0.0)]


NAMES = ["negative", "negatives", "hard_negative", "hard_negatives", "hard_neg", "hard_negs", "neg", "negs", "neg_list"]


@pytest.mark.parametrize(
    "name", [*NAMES, "negative_text", "negative_texts", "rejected", "rejected_response", "neg_1", "hardnegs_2"]
)
@pytest.mark.parametrize(("query", "document"), PAIRS)
def test_pairs_take_negatives_of_any_known_name(tmp_path: Path, query: str, document: str, name: str) -> None:
    for value, expected in (
        (HEN, (HEN,)),
        ([HEN, DUCK], (HEN, DUCK)),
        ([{"title": "", "text": HEN}], (HEN,)),
        ([], ()),
    ):
        row = {query: BIRD, document: OWL, name: value}
        if document == "sentence2" and not expected:
            continue  # without negatives it is an unlabelled pair of sentences
        assert load(tmp_path, row)[0] == Record(BIRD, (OWL,), expected)


def test_numbered_negatives_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    numbered = {f"negative_{i}": f"n {i}" for i in (10, 2, 1)}
    row = {"question": BIRD, "answer": OWL, **numbered, "negatives": ["n 0"], "neg_scores": [4, 3, 2, 1]}
    record = load(tmp_path, row)[0]
    assert record.negatives == ("n 0", "n 1", "n 2", "n 10")
    assert (record.positive_scores, record.negative_scores) == (None, (4, 3, 2, 1))


@pytest.mark.parametrize(
    "name", ["hard_negs", "neg", "rejected", "negative_1", "hardNegatives", "distractors", "mined_negative_texts"]
)
@pytest.mark.parametrize("value", [HEN, [HEN], [{"text": HEN}]])
@pytest.mark.parametrize(
    "row",
    [
        {"query": BIRD, "positives": [OWL]},
        {"query": BIRD, "positive_passages": [{"text": OWL}]},
        {"messages": [{"role": "user", "content": BIRD}], "positive_messages": [[{"role": "user", "content": OWL}]]},
    ],
)
def test_other_dialects_refuse_negatives_that_they_do_not_read(
    tmp_path: Path, row: dict[str, Any], name: str, value: Any
) -> None:
    message = refusal(tmp_path, row | {name: value})
    query, positive = row
    assert message.startswith(f"rows.jsonl:1: {name}: ")
    if "did you mean" not in message:
        assert "holds negatives, and dialect" in message
        assert f"columns: {{query: {query}, positive: {positive}, negatives: {name}}} (scripts: --columns " in message
        if "messages" not in row:
            named = {"query": query, "positive": positive, "negatives": name}
            assert load(tmp_path, row | {name: value}, columns=named)[0] == Record(BIRD, (OWL,), (HEN,))


@pytest.mark.parametrize(
    ("field", "value", "content"),
    [
        ("others", [HEN, DUCK], "texts, which may be negatives or positives"),
        ("weitere", ["夜に鳴く鳥はいない", "鶏は夜に眠る"], "texts, which may be negatives or positives"),
        ("ctxs", [{"title": "Hens", "text": HEN}], "texts, which may be negatives or positives"),
        ("teacher_scores", [0.9, 0.1], "teacher scores"),
        ("neg_score", 0.1, "teacher scores"),
        ("wrong_answer", HEN, "negatives"),
    ],
)
def test_fields_are_refused_by_their_content(tmp_path: Path, field: str, value: Any, content: str) -> None:
    """In a later row, since the first may lack the field."""
    row = {"query": BIRD, "positives": [OWL]}
    message = refusal(tmp_path, row | {field: None}, row | {field: value})
    assert message.startswith(f"rows.jsonl:2: {field}: holds {content}, and dialect nestling does not read it")


def test_fields_about_texts_are_only_counted(tmp_path: Path) -> None:
    about = {
        **{"negative_ids": ["d1", "d2"], "neg_type": "mined", "num_negatives": 3, "negs": []},
        **{"tags": ["birds", "wild life"], "title": "A long title of the page", "mined": {"negatives": [{"id": "d1"}]}},
        **{"quality_score": 0.5, "is_negative": False},
    }
    table = load(tmp_path, {"query": BIRD, "positives": [OWL], "negatives": [HEN]} | about)
    assert {field for field, _ in table.summary.ignored} == about.keys()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": [OWL, HEN], "labels": [1]}, "labels: 1 scores for 2 texts in answer"),
        ({"answer": [OWL, HEN], "labels": [0.9, 0.1]}, "labels: expected whole grades, 0 for a negative"),
        ({"answer": [OWL, HEN], "labels": [1, 0], "neg": [DUCK]}, "labels: beside neg; expected one of the two"),
        ({"answer": [OWL, HEN], "labels": [0, 0]}, "answer: no document is labelled relevant; rows that have only"),
        ({"answer": [OWL, HEN], "scores": [1]}, "scores: 1 scores for 2 texts in answer"),
        ({"answer": OWL, "negs": [HEN], "scores": [1]}, "scores: 1 scores for 2 texts"),
        ({"answer": OWL, "negs": 7}, "negs: expected a text or a list of texts, got int 7"),
        ({"answer": OWL, "negs": [HEN], "label": 1}, "score: a graded pair has one positive, no negatives"),
        ({"answer": None, "negs": [HEN]}, "answer: missing"),
    ],
)
def test_refused_pairs(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, {"question": BIRD, **row}).startswith(f"rows.jsonl:1: {message}")


def test_lists_under_positive_and_negative(tmp_path: Path) -> None:
    row = {"query": BIRD, "positive": [OWL, "Bats are no birds."], "negative": [HEN, DUCK, LARK]}
    expected = Record(BIRD, (OWL, "Bats are no birds."), (HEN, DUCK, LARK))
    assert load(tmp_path, row)[0] == expected
    scores = {"scores": [5, 4, 3, 2, 1]}
    assert load(tmp_path, row | scores)[0] == Record(*_texts(expected), (5, 4), (3, 2, 1))
    only_negatives = {"query": BIRD, "positive": [], "negative": [HEN]}
    assert load(tmp_path, only_negatives, allow_no_positives=True)[0] == Record(BIRD, (), (HEN,))


def _texts(record: Record) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return record.query, record.positives, record.negatives


def test_pos_and_neg_as_one_text(tmp_path: Path) -> None:
    row = {"query": BIRD, "pos": OWL, "neg": HEN, "pos_scores": [0.9], "neg_scores": [0.1]}
    assert load(tmp_path, row)[0] == Record(BIRD, (OWL,), (HEN,), (0.9,), (0.1,))


def test_passages_arrive_with_their_scores(tmp_path: Path) -> None:
    negatives = [{"docid": str(i), "text": text, "score": 0.3 - i / 10} for i, text in enumerate((HEN, DUCK, LARK))]
    row = {
        "query": BIRD,
        "positive_passages": [{"title": "", "text": OWL, "score": 0.9}],
        "negative_passages": negatives,
    }
    table = load(tmp_path, row)
    assert (table[0], table.has_scores) == (
        Record(BIRD, (OWL,), (HEN, DUCK, LARK), (0.9,), (0.3, 0.3 - 0.1, 0.3 - 0.2)),
        True,
    )
    del negatives[1]["score"]
    assert refusal(tmp_path, row).startswith(
        "rows.jsonl:1: negative_passages[1]: score: missing, while others of the row have"
    )


def test_documents_of_nvidia(tmp_path: Path) -> None:
    """NeMo Automodel's rows with their texts inside."""
    row = {"question_id": "1", "question": BIRD, "corpus_id": "c", "pos_doc": [OWL], "neg_doc": [HEN, DUCK]}
    assert load(tmp_path, row)[0] == Record(BIRD, (OWL,), (HEN, DUCK))
    message = refusal(tmp_path, row | {"pos_doc": [{"id": "p"}]})
    assert message == (
        "rows.jsonl:1: pos_doc[0]: an id without a text; ids are read where one JSON object holds corpus and data"
    )


def test_sentences_with_a_label(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": f"b {i}", "label": i} for i in range(2)]
    table = load(tmp_path, *rows)
    assert [table[0], table[1], table.graded] == [Record("a", ("b 0",), score=0), Record("a", ("b 1",), score=1), True]


def test_tables_keep_negatives(tmp_path: Path) -> None:
    listed = json.dumps([HEN, DUCK]).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'question,answer,hard_negs,negative_1\n{BIRD},{OWL},"{listed}",{LARK}\n')
    (tmp_path / "lists.csv").write_text(f'query,positive,labels\n{BIRD},"{listed}","[1, 0]"\n')
    (tmp_path / "python.csv").write_text(f"query,positive,negs\n{BIRD},{OWL},['{HEN}']\n")
    (tmp_path / "text.csv").write_text(f"query,positive,negs\n{BIRD},{OWL},[1] {HEN}\n")
    (tmp_path / "shell.csv").write_text('task,command\nis it a file,[ -f x ]\nis it empty,"[""$x""] && echo"\n')
    pq.write_table(
        pa.table({"question": [BIRD], "answer": [OWL], "hard_negs": [[HEN, DUCK]], "negative_1": [LARK]}),
        tmp_path / "rows.parquet",
    )
    for name in ("rows.csv", "rows.parquet"):
        assert load_records(tmp_path / name, cache_dir=tmp_path / "cache")[0] == Record(BIRD, (OWL,), (HEN, DUCK, LARK))
    assert load_records(tmp_path / "lists.csv", cache_dir=tmp_path / "cache")[0] == Record(BIRD, (HEN,), (DUCK,))
    assert load_records(tmp_path / "text.csv", cache_dir=tmp_path / "cache")[0].negatives == (f"[1] {HEN}",)
    named = load_records(
        tmp_path / "shell.csv", cache_dir=tmp_path / "cache", columns={"query": "task", "positive": "command"}
    )
    assert [each.positives for each in named] == [("[ -f x ]",), ('["$x"] && echo',)]
    with pytest.raises(ValueError, match=r"python.csv:2: negs: expected a JSON array"):
        load_records(tmp_path / "python.csv", cache_dir=tmp_path / "cache")
