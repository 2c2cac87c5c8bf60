"""Values, names and nesting far beyond the usual: one short error with file and line, or rows that are read."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.records import load_records, load_retrieval_set

PAIR, GRADED = {"query": "q", "positive": "p"}, {"sentence1": "q", "sentence2": "p"}
MILLION, DEEP = 10**6, 100_000
COLUMNS = {f"c{i}": "text" for i in range(20_000)}
LONGEST_MESSAGE = 600  # characters behind the path of the file, without a line for `columns`


def refusal(path: Path, **options: Any) -> str:
    """The message of the error behind the path, which is one line."""
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        load_records(path, cache_dir=path.parent / "cache", **options)
    assert type(caught.value) is ValueError
    return str(caught.value).removeprefix(f"{path}:")


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def text(row: dict[str, Any], **more: str) -> str:
    """A row of JSON, with further fields whose values are given as JSON."""
    return json.dumps(row)[:-1] + "".join(f', "{name}": {value}' for name, value in more.items()) + "}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", text(GRADED, score="1e400"), "1: score: expected a finite number, got inf"),
        ("a.jsonl", text(GRADED, score="9" * 4000), f"1: score: expected a finite number, got {'9' * 40}"),
        ("a.jsonl", text(GRADED, score="9" * 5000), "1: line: broken JSON: Exceeds the limit (4300 digits)"),
        ("a.jsonl", text(PAIR, positive_scores="[NaN]"), "1: positive_scores[0]: expected a finite number, got nan"),
        ("a.csv", "sentence1,sentence2,score\na,b,1e400\n", "2: score: expected a finite number, got inf"),
        ("a.jsonl", text(GRADED, score=f'"{"9" * MILLION}"'), "1: score: expected a number, got a text"),
        ("a.csv", f"sentence1,sentence2,score\na,b,x{'9' * MILLION}\n", "2: score: expected a number, got 'x9"),
        ("a.jsonl", json.dumps({"k" * MILLION: 1} | PAIR), f"1: {'k' * 100}…: a name of 1,000,000 characters"),
        ("a.jsonl", text(PAIR, **{"negative" * 2000: "1"}), "1: negative"),
        ("a.jsonl", text({"k" * MILLION: 1}, **{"k" * MILLION: "1"}), f"1: {'k' * 100}…: given twice in one object"),
        ("a.csv", f"query,positive,{'k' * MILLION}\nq,p,x\n", f"2: {'k' * 100}…: a name of 1,000,000 characters"),
        ("a.csv", f"query,,{'k' * MILLION}\nq,p,x\n", "1: header: looks like data, not like names of columns: 'kkk"),
        ("a.jsonl", text(PAIR, note=nested(DEEP)), "1: line: broken JSON: nested too deeply"),
        ("a.jsonl", text(PAIR, note=nested(DEEP, '{"a":', "}")), "1: line: broken JSON: "),
        ("a.json", f"[{text(PAIR)},\n{text(PAIR, negatives=nested(DEEP))}]", "2: line: broken JSON: nested too deeply"),
        ("a.csv", f"query,positive,scores\nq,p,{nested(DEEP)}\n", "2: scores: expected a JSON array: "),
        ("a.jsonl", text({"query": "q", "positive": "p\ud800"}), "1: positives[0]: half of a surrogate pair"),
        ("a.jsonl", text(PAIR | {"k\ud800": 1}), r"1: k\ud800: half of a surrogate pair in this name"),
        ("a.jsonl", text(PAIR | {"instruction": "\udfff"}), "1: instruction: half of a surrogate pair"),
        ("a.jsonl", json.dumps(COLUMNS), "1: keys: found 'c0', 'c1', "),
        ("a.csv", ",".join(COLUMNS) + "\n" + ",".join(COLUMNS), "2: keys: found 'c0', 'c1', "),
        ("a.jsonl", text(COLUMNS | PAIR, c3="1"), "1: c3: given twice in one object"),
        (
            "a.jsonl",
            json.dumps({"messages": [{"role": "r" * MILLION}], "positive_messages": []}),
            f"1: messages: role '{'r' * 40}…'; expected user or assistant",
        ),
        (
            "a.json",
            json.dumps({"queries": {"q": "x"}, "corpus": {"d": "y"}, "relevant_docs": {"q": ["z" * MILLION]}}),
            f"1: relevant_docs[q]: there is no document '{'z' * 40}' in corpus",
        ),
    ],
)
def test_one_short_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    begin = time.process_time()
    found = refusal(tmp_path / name)
    assert found.startswith(message)
    assert len(found) < (LONGEST_MESSAGE if "To name them" not in found else 2 * LONGEST_MESSAGE)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_twenty_thousand_columns(tmp_path: Path, name: str) -> None:
    row = PAIR | COLUMNS
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    elif name == "a.csv":
        (tmp_path / name).write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        (tmp_path / name).write_text(json.dumps(row))
    summary = load_records(tmp_path / name, cache_dir=tmp_path / "cache").summary
    assert len(summary.ignored) == len(COLUMNS), "counted, each"
    assert str(summary).endswith("\n  ignored 19,980 more fields")


def test_names_of_columns_that_are_named(tmp_path: Path) -> None:
    """Those of columns that are left out are checked as well."""
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR | {"k" * MILLION: 1}))
    columns = {"query": "query", "positive": "positive"}
    assert refusal(tmp_path / "a.jsonl", columns=columns).startswith(f"1: {'k' * 100}…: a name of 1,000,000 characters")


@pytest.mark.parametrize("depth", [400, 700])
@pytest.mark.parametrize("field", ["hard_negs", "scores"])
def test_nesting_that_json_reads(tmp_path: Path, depth: int, field: str) -> None:
    (tmp_path / "a.jsonl").write_text(text(PAIR, note=nested(depth)))
    assert len(load_records(tmp_path / "a.jsonl", cache_dir=tmp_path / "cache")) == 1
    (tmp_path / "a.jsonl").write_text(text(PAIR, **{field: nested(depth)}))
    assert refusal(tmp_path / "a.jsonl").startswith(f"1: {field}[0]: expected a ")


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    value, kind = ["x"], pa.list_(pa.string())
    for _ in range(200):
        value, kind = [value], pa.list_(kind)  # type: ignore[list-item]
    pq.write_table(pa.table({"query": ["q"], "positive": ["p"], "n": pa.array([value], kind)}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith("1: file: not a readable Parquet file: ")


def test_ids_of_a_megabyte(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}')
    for line in (f"q\td\t{'9' * MILLION}x", f"q\t{'d' * MILLION}\t1", "q\td\t" + "1\t" * MILLION):
        (tmp_path / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
        with pytest.raises(ValueError, match=r"dev.tsv:2: ") as caught:
            load_retrieval_set(tmp_path, "dev", cache_dir=tmp_path / "cache")
        assert len(str(caught.value)) < LONGEST_MESSAGE
