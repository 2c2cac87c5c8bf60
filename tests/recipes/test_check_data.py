"""scripts/check_data.py as it is run: what it finds, the copy, the reports, and one line for what cannot work."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from recipes.runs import run_main
from report.pages import ParsedPage
from scripts.check_data import main
from sets import write_beir

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_data.py"
LONG = "a text that is long enough to be compared with another one of the same length"
ROWS = [
    {"query": "how do I list files?", "positives": ["ls"], "negatives": ["rm -rf x", "mkdir new"]},
    {"query": "how do I list files?", "positives": ["ls -l", "ls -l"], "negatives": ["ls", "cat file"]},
    {"query": "echo", "positives": ["echo", "print a line"]},
    {"query": "how do I list files?", "positives": ["ls"], "negatives": ["rm -rf x", "mkdir new"]},
    {"query": LONG, "positives": ["ls"]},
    {"query": f"{LONG.upper()}!", "positives": ["高雄市"]},
    {"query": "what is in the test set", "positives": ["mkdir new"]},
    {"query": "What is in — the test set?", "positives": ["rm -rf x"]},
]

check = partial(run_main, main)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    qrels = {"q0": {"d0": 1}}
    write_beir(tmp_path / "set", ["touch file", "unjudged"], ["What is in the test set?"], qrels)
    return tmp_path / "set"


def test_everything_is_found_and_nothing_changed(data: Path, held_out: Path, tmp_path: Path) -> None:
    before = data.read_bytes()
    report = tmp_path / "report.json"
    done = check("--data", data, "--eval", held_out, "--report", report)
    assert done.returncode == 0, done.stderr
    assert data.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "report.json", "set"]
    content = json.loads(report.read_text())
    counts = {each["name"]: each["count"] for each in content["findings"]}
    assert counts == {
        "repeated_rows": 1,
        "repeated_queries": 1,
        "repeated_documents": 1,
        "query_as_document": 1,
        "contradictions": 1,
        "near_in_row": 0,
        "shared_positives": 1,
        "short_queries": 0,
        "short_documents": 1,
        "near_queries": 2,
        "near_documents": 0,
        "query_in_evaluation_queries": 2,
        "document_in_evaluation_queries": 0,
        "query_in_evaluation_documents": 0,
        "document_in_evaluation_documents": 0,
        "eval_queries": 2,
        "eval_documents": 0,
    }
    examples = {each["name"]: each["examples"] for each in content["findings"]}
    assert examples["repeated_rows"][0]["place"] == f"{data}:4"
    assert examples["repeated_rows"][0]["other_place"] == f"{data}:1"
    (contradiction,) = examples["contradictions"]
    assert (contradiction["place"], contradiction["text"]) == (f"{data}:2", "ls")
    assert contradiction["other_place"] == f"{data}:1"
    assert examples["shared_positives"][0]["note"] == "positive of 3 rows"
    assert examples["query_in_evaluation_queries"][1]["other_place"] == "set/test: q0"
    assert content["statistics"]["document"]["scripts"] == {"Latin": 7, "Han": 1}
    assert content["copy"] is None
    assert f"{data}:4" in done.stdout
    assert "training queries that are evaluation queries (2 equal, 0 near duplicates)" in done.stdout


def test_columns_are_named_and_a_retrieval_set_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"title": "q", "body": LONG, "others": ["n"]}) + "\n")
    refused = check("--data", tmp_path / "rows.jsonl")
    assert refused.returncode == 2
    assert "--columns query=title,positive=body)" in refused.stderr
    named = check("--data", tmp_path / "rows.jsonl", "--columns", "query=title,positive=body,negatives=others")
    assert named.returncode == 0, named.stderr
    assert "1 positives (at most 1 a row), 1 hard negatives (at most 1 a row)" in named.stdout
    parts = {"queries": {"a": "q"}, "corpus": {"b": LONG}, "relevant_docs": {"a": ["b"]}}
    (tmp_path / "set.json").write_text(json.dumps(parts, indent=1))
    both = check("--data", tmp_path / "set.json", "--eval", tmp_path / "set.json")
    assert both.returncode == 0, both.stderr
    assert "1 rows read, 1 kept" in both.stdout


def test_the_copy_lacks_what_the_rules_name(data: Path, held_out: Path, tmp_path: Path) -> None:
    output = tmp_path / "cleaned.jsonl"
    report = tmp_path / "report.html"
    done = check("--data", data, "--eval", held_out, "--output", output, "--report", report)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert kept == [
        ROWS[0],
        {"query": "how do I list files?", "positives": ["ls -l"], "negatives": ["cat file"]},
        {"query": "echo", "positives": ["print a line"], "negatives": []},
        {**ROWS[4], "negatives": []},
        {**ROWS[5], "negatives": []},
    ]
    assert "5 of 8 rows are kept, with 8 of 16 documents" in done.stdout
    assert f"{output} holds 5 rows; {data} is unchanged" in done.stdout
    assert json.dumps("高雄市") not in output.read_text(encoding="utf-8")  # as people write it
    page = report.read_text(encoding="utf-8")
    assert ParsedPage(page).loads == []
    assert "the cleaned copy" in page
    assert "<td>repeated_rows" in page
    assert "src=" not in page
    assert not list(tmp_path.glob(".*partial"))


def test_rules_can_be_chosen(data: Path, tmp_path: Path) -> None:
    for rules, rows in (("[]", 8), ("near_queries", 6), ("short,repeated_rows", 5)):
        output = tmp_path / f"{rows}.jsonl"
        done = check("--data", data, "--output", output, "--drop", rules)
        assert done.returncode == 0, done.stderr
        assert len(output.read_text().splitlines()) == rows
        assert "No evaluation set was given" in done.stdout
    done = check("--data", data, "--drop", "near_querys")
    assert done.returncode == 2
    assert "near_querys" in done.stderr
    assert done.stderr.count("\n") == 1


def test_tokens_and_limits(data: Path, bert: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    limits = ["--query_max_length", "5", "--document_max_length", "7"]
    done = check("--data", data, "--model", bert, *limits, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "truncation of 6 distinct queries" in done.stdout
    tokens = json.loads(report.read_text())["statistics"]["query"]["tokens"]
    assert tokens["truncations"][0]["limit"] == 5
    assert tokens["truncations"][0]["texts"] > 0
    assert tokens["truncations"][-1]["texts"] == 0


def test_a_beir_folder_and_graded_pairs(held_out: Path, tmp_path: Path) -> None:
    done = check("--data", held_out, "--split", "test", "--eval", held_out)
    assert done.returncode == 0, done.stderr
    assert f"{held_out}/qrels/test.tsv:2" in done.stdout
    pairs = tmp_path / "graded.csv"
    pairs.write_text("sentence1,sentence2,score\na dog,a cat,1\na dog,a cat,2\n")
    done = check("--data", pairs, "--output", tmp_path / "cleaned.jsonl", "--drop", "repeated_documents")
    assert done.returncode == 0, done.stderr
    assert "graded pairs that an earlier row has with a different score" in done.stdout
    kept = [json.loads(line) for line in (tmp_path / "cleaned.jsonl").read_text().splitlines()]
    assert [row["score"] for row in kept] == [1.0, 2.0]


def test_what_cannot_work_is_said_in_a_line(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "a", "positives": ["b"]}\n{"query": "", "positives": ["b"]}\n')
    copies = tmp_path / "copies.jsonl"
    copies.write_text('{"query": "a b c", "positives": ["a b c"]}\n')
    none = tmp_path / "none"
    for arguments, message in (
        (["--data", data, "--output", data], f"--output {data} exists; choose another name or remove it"),
        (["--data", data, "--report", data], f"--report {data} exists; choose another name or remove it"),
        (["--data", data, "--output", none / "x.jsonl"], f"--output {none}/x.jsonl: the folder {none} does not exist"),
        (["--data", data, "--output", tmp_path / "x.csv"], "--output: expected a name in .jsonl"),
        (["--data", data, "--report", tmp_path / "x.txt"], f"--report {tmp_path}/x.txt: expected a name in .json or"),
        (["--data", data, "--eval", none], f"{none}: folder: there is no such folder; expected one in the BEIR layout"),
        (["--data", data, "--model", none], f"--model {none}: no such directory"),
        (["--data", data, "--query_max_length", "9"], "query_max_length and document_max_length need a --model"),
        (["--data", data, "--threshold", "0"], "threshold is 0.0, expected above 0 and at most 1"),
        (["--data", none / "x.jsonl"], f"{none}/x.jsonl: file: there is no such file or folder"),
        (
            ["--data", data, "--split", "test"],
            f"{data}: split is test, and this has no splits, so that all of it would",
        ),
        (["--data", broken], f"{broken}:2: query: the text is empty"),
        (
            ["--data", copies, "--output", tmp_path / "x.jsonl"],
            f"all rows were dropped, so {tmp_path}/x.jsonl is not written",
        ),
    ):
        done = check(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.jsonl").exists()
    assert len(data.read_text().splitlines()) == len(ROWS)


def test_the_report_says_what_left_nothing_of_a_copy(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "the same", "positives": ["the same"]}\n')
    output, report = tmp_path / "cleaned.jsonl", tmp_path / "report.json"
    done = check("--data", tmp_path / "rows.jsonl", "--output", output, "--report", report)
    assert done.returncode == 2
    assert "all rows were dropped" in done.stderr
    assert not output.exists()
    dropped = {each["rule"]: each["rows"] for each in json.loads(report.read_text())["copy"]}
    assert dropped["no_positive_left"] == 1


def test_a_full_disk_leaves_no_half_copy(tmp_path: Path, small_disk: Path) -> None:
    data = tmp_path / "many.jsonl"
    rows = ({"query": f"query {i}", "positives": [f"text {i} " * 200]} for i in range(2500))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = check("--data", data, "--output", small_disk / "copy.jsonl", "--sample", "10")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "copy.jsonl" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_as_a_command(data: Path) -> None:
    """It loads torch for the tokenizer of a model only: that takes longer than to check small data."""
    environment = {**os.environ, "PYTHONWARNINGS": "error::UserWarning"}
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "nestling.data_checks.checks\n" in done.stderr and " torch\n" not in done.stderr
    assert "rows identical to an earlier row" in done.stdout
