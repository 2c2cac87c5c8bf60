"""scripts/mine.py as it is run."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_recipe

import nestling.mining.judge
from mining.small import random_rows, write_corpus, write_rows
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.records import load_records
from nestling.records.words import folded_text_id
from recipes.runs import run_main
from scripts.mine import main
from sets import WORDS, write_beir
from tiny import tiny_bert

SCRIPT = Path(__file__).parents[2] / "scripts" / "mine.py"
SHORT = ["--query_max_length", "24", "--document_max_length", "24"]
ROWS = [
    {"query": "how do I list files?", "positives": ["ls"], "negatives": ["rm -rf", "mkdir new"]},
    {"query": "show a manual", "positives": ["man ls", "info ls"], "instruction": "Find the command"},
    {"query": "only wrong ones", "positives": [], "negatives": ["cat"]},
]

pytestmark = pytest.mark.usefixtures("workplace")

mine = partial(run_main, main)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", random_rows(40))


def test_a_judge_alone_writes_its_scores(rows: Path, qwen3_reranker: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged.jsonl"
    refused = mine("--judge", qwen3_reranker, "--data", rows, "--output", output, "--split", "test")
    assert "rows.jsonl: split is test, and this has no splits, so that all of it would be read" in refused.stderr
    done = mine("--judge", qwen3_reranker, "--data", rows, "--output", output, "--scores", "probability")
    assert done.returncode == 0, done.stderr
    assert "3 queries, 0 truncated; 6 documents, 0 truncated" in done.stdout
    reranker = Reranker.from_pretrained(qwen3_reranker)
    for row, given in zip(read(output), ROWS, strict=True):
        assert {name: row[name] for name in given} == given
        documents = [*given["positives"], *given.get("negatives", [])]
        scores = reranker.score([(given["query"], each) for each in documents], instruction=given.get("instruction"))
        assert row["positive_scores"] + row["negative_scores"] == pytest.approx(scores.tolist(), abs=1e-6)
    assert load_records(output, allow_no_positives=True, progress=False).has_scores


def test_a_judge_alone_goes_on_where_it_was_killed(
    pairs: Path, qwen3_reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--judge", qwen3_reranker, "--data", pairs, "--output"]
    assert mine(*command, tmp_path / "whole.jsonl").returncode == 0
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(nestling.mining.judge, "RECORDS_PER_BLOCK", 16)
    logits, calls = Reranker.logits, []

    def killed_at_the_second(self: Reranker, groups: Any, **more: Any) -> Any:
        calls.append(len(groups))
        if len(calls) == 2:
            raise ValueError("killed")
        return logits(self, groups, **more)

    monkeypatch.setattr(Reranker, "logits", killed_at_the_second)
    assert "killed" in mine(*command, tmp_path / "out.jsonl").stderr
    assert calls == [16, 16]
    done = mine(*command, tmp_path / "out.jsonl")
    assert calls == [16, 16, 16, 8]
    assert "24 queries, 0 truncated" in done.stdout
    assert " pairs were in the cache" in done.stdout
    whole, out = read(tmp_path / "whole.jsonl"), read(tmp_path / "out.jsonl")
    for one, other in zip(whole, out, strict=True):
        for name in ("positive_scores", "negative_scores"):
            assert one.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
    assert whole == out


def test_nothing_is_overwritten(rows: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--judge", "r", "--data", rows, "--output"]
    done = subprocess.run([*command, rows], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (2, f"error: --output {rows} exists; choose another name or remove it\n")


def expected_negatives(
    pairs: Path, model: Path, *, max_score_ratio: float, wanted: int
) -> list[list[tuple[str, float]]]:
    """The negatives of each row by loops in float64 over the rounded embeddings, and their scores."""
    table = load_records(pairs, progress=False)
    records = [table[i] for i in range(len(table))]
    texts = list(dict.fromkeys([t for r in records for t in r.positives] + [t for r in records for t in r.negatives]))
    embedder = Embedder.from_pretrained(model)
    documents = embedder.encode(texts, kind="document", max_length=24).half().double().numpy()
    found = []
    for record in records:
        query = embedder.encode([record.query], kind="query", max_length=24, instruction=record.instruction)
        scores = dict(zip(texts, (documents @ query.half().double().numpy()[0]).tolist(), strict=True))
        same = (each for each in records if (each.query, each.instruction) == (record.query, record.instruction))
        positives = {text for other in same for text in other.positives}
        lowest = min(scores[text] for text in positives)
        taken = {folded_text_id(text) for text in (*positives, record.query)}
        own: list[tuple[str, float]] = []
        for text in sorted(texts, key=lambda text: -scores[text]):
            if folded_text_id(text) not in taken:
                taken.add(folded_text_id(text))
                if scores[text] < lowest - abs(lowest) * (1 - max_score_ratio):
                    own.append((text, scores[text]))
        found.append(own[:wanted])
    return found


def test_negatives_are_those_of_a_loop(pairs: Path, qwen3: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    options = ["--num_negatives", "3", "--max_score_ratio", "0.9", "--explain", "true", "--depth", "500", *SHORT]
    done = mine("--data", pairs, "--retrievers", qwen3, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    expected = expected_negatives(pairs, qwen3, max_score_ratio=0.9, wanted=3)
    mined = read(output)
    assert len(mined) == len(expected) == 40
    for row, own in zip(mined, expected, strict=True):
        assert row["negatives"] == [text for text, _ in own]
        assert row["negative_scores"] == pytest.approx([score for _, score in own], abs=2e-4)
        facts = row["mined"]["negatives"]
        assert [each["scores"][qwen3.name] for each in facts] == pytest.approx(row["negative_scores"], abs=1e-6)
        ranks = [each["ranks"][qwen3.name] for each in facts]
        assert ranks == sorted(ranks)
    assert any(len(own) < 3 for own in expected)
    assert "fewer than 3 negatives: " in done.stdout
    assert " negatives that rows have are replaced; name the retriever given to judge them again" in done.stdout
    again = load_records(output, progress=False)
    assert again.has_scores
    assert again.summary.ignored == (("mined", 40),)
    assert again.summary.drops == ()


def test_an_ensemble_scores_every_document_by_all_retrievers(pairs: Path, bert: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    options = [
        "--scores",
        "ensemble",
        "--num_negatives",
        "500",
        "--max_score_ratio",
        "null",
        "--depth",
        "500",
        "--explain",
        "true",
    ]
    done = mine("--data", pairs, "--retrievers", f"bm25,{bert}", "--output", output, *options, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "with scores of ensemble" in done.stdout
    rows = read(output)
    assert len(rows) == 40
    for row in rows:
        facts = row["mined"]["positives"] + row["mined"]["negatives"]
        written = np.array(row["positive_scores"] + row["negative_scores"])
        assert all({"bm25", bert.name, "ensemble"} <= each["scores"].keys() for each in facts)
        # A mean of standard scores is a weighted sum of the members' scores, with the same weights everywhere.
        members = np.array([[each["scores"]["bm25"], each["scores"][bert.name], 1] for each in facts])
        row["sums"] = (members, written)
    members, written = (np.concatenate(each) for each in zip(*(row["sums"] for row in rows), strict=True))
    weights, *_ = np.linalg.lstsq(members, written, rcond=None)
    np.testing.assert_allclose(members @ weights, written, atol=1e-4)
    assert weights[0] > 0
    assert weights[1] > 0
    refused = mine("--data", pairs, "--retrievers", str(bert), "--output", tmp_path / "x", "--scores", "ensemble")
    assert "scores: ensemble needs two or more retrievers" in refused.stderr


@pytest.mark.parametrize("dialect", ["sentence-transformers", "flagembedding"])
def test_other_dialects_hold_the_same(pairs: Path, bert: Path, tmp_path: Path, dialect: str) -> None:
    common = ["--data", pairs, "--retrievers", f"bm25,{bert}", "--num_negatives", "2", *SHORT]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    assert mine(*common, "--output", ours).returncode == 0
    done = mine(*common, "--output", theirs, "--format", dialect)
    assert done.returncode == 0, done.stderr
    one, other = (load_records(path, progress=False) for path in (ours, theirs))
    if dialect == "flagembedding":
        assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
        return
    flat = [(row.query, text, row.negatives) for row in map(one.__getitem__, range(len(one))) for text in row.positives]
    assert flat == [(row.query, row.positives[0], row.negatives) for row in map(other.__getitem__, range(len(other)))]


def test_a_run_and_bm25_over_a_beir_folder(tmp_path: Path) -> None:
    texts = [f"{WORDS[i % 12]} {WORDS[i % 5]} {i}" for i in range(30)]
    write_beir(tmp_path / "set", texts, ["alpha", "beta gamma"], {"q0": {"d0": 1}, "q1": {"d1": 1, "d2": 2}})
    (tmp_path / "run.trec").write_text(
        "q0 Q0 d5 1 0.5 tag\nq0 Q0 d0 2 0.75 tag\nq0 Q0 d7 3 0.7 tag\nq1 Q0 d9 1 1 tag\n"
    )
    output = tmp_path / "mined.jsonl"
    options = ["--split", "test", "--num_negatives", "20", "--explain", "true", "--max_score_ratio", "0.9"]
    done = mine("--data", tmp_path / "set", "--retrievers", f"{tmp_path}/run.trec,bm25", "--output", output, *options)
    assert done.returncode == 0, done.stderr
    first, second = read(output)
    # d7 is too near the positive's 0.75; what only BM25 found has no score of the run, which ranks it lower.
    assert first["negatives"][0] == texts[5]
    assert texts[7] not in first["negatives"]
    facts = first["mined"]["negatives"]
    assert facts[0]["id"] == "d5"
    assert (facts[0]["ranks"]["run.trec"], facts[0]["scores"]["run.trec"]) == (3, 0.5)
    assert len(facts) > 1
    assert {tuple(each["ranks"]) for each in facts[1:]} == {("bm25",)}
    assert second["negatives"] == []  # the run knows neither positive's score
    assert "no score of a positive to compare with" in done.stdout


def test_a_judge_drops_or_relabels(pairs: Path, bert: Path, qwen3_reranker: Path, tmp_path: Path) -> None:
    common = [
        "--data",
        pairs,
        "--retrievers",
        bert,
        "--judge",
        qwen3_reranker,
        "--max_score_ratio",
        "null",
        "--judge_depth",
        "6",
        *SHORT,
    ]
    reranker = Reranker.from_pretrained(qwen3_reranker)
    plain, relabelled = tmp_path / "plain.jsonl", tmp_path / "relabelled.jsonl"
    done = mine(*common, "--output", plain)
    assert done.returncode == 0, done.stderr
    assert mine(*common, "--relabel", "true", "--scores", "probability", "--output", relabelled).returncode == 0
    added = 0
    for row, other in zip(read(plain), read(relabelled), strict=True):
        documents = [*row["positives"], *row["negatives"]]
        scores = reranker.score([(row["query"], each) for each in documents], instruction=row.get("instruction"))
        assert np.all(scores.numpy()[len(row["positives"]) :] <= 0.5 + 1e-5)
        logits = np.array(row["positive_scores"] + row["negative_scores"])
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores.numpy(), atol=1e-5)
        assert other["negatives"] == row["negatives"]
        more = other["positives"][len(row["positives"]) :]
        assert other["positives"][: len(row["positives"])] == row["positives"]
        assert all(score > 0.5 for score in other["positive_scores"][len(row["positives"]) :])
        assert len(row["negatives"]) + len(more) <= 6
        added += len(more)
    assert added > 0


def test_given_negatives_are_judged_again(pairs: Path, bert: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    done = mine("--data", pairs, "--retrievers", "given", "--scorer", bert, "--output", output, *SHORT)
    assert done.returncode == 0, done.stderr
    before = load_records(pairs, progress=False)
    for i, row in enumerate(read(output)):
        same = [before[j] for j in range(len(before)) if before[j].query == before[i].query]
        assert set(row["negatives"]) <= {text for each in same for text in each.negatives}
    assert done.returncode == mine("--data", pairs, "--retrievers", "given", "--output", tmp_path / "x").returncode - 2


def test_given_negatives_are_ordered_by_a_retriever_that_has_scores(pairs: Path, tmp_path: Path) -> None:
    done = mine("--data", pairs, "--retrievers", "given,bm25", "--output", tmp_path / "mined.jsonl")
    assert done.returncode == 0, done.stderr
    assert "with scores of bm25" in done.stdout


def test_a_consistency_filter(bert: Path, tmp_path: Path) -> None:
    rows = random_rows(30)
    data, output = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "mined.jsonl"
    done = mine("--data", data, "--retrievers", bert, "--consistent", "5", "--output", output, *SHORT)
    assert done.returncode == 0, done.stderr
    kept = read(output)
    positives = sum(len(row["positives"]) for row in kept)
    table = load_records(data, progress=False)
    assert 0 < len(kept) < len(table)
    assert (
        f"{table.summary.positives - positives} positives not consistent, which left {len(table) - len(kept)} rows"
        in (done.stdout)
    )
    doubted = {text for row in table_rows(table) for text in row.positives} - {
        t for row in kept for t in row["positives"]
    }
    by_query = {row["query"]: row for row in kept}
    for record in table_rows(table):
        if record.query in by_query:
            assert not set(by_query[record.query]["negatives"]) & set(record.positives)  # doubted ones are no negatives
    assert doubted

    found = []
    for depth in (3, 500):
        output = tmp_path / f"{depth}.jsonl"
        given = ["--consistent", "5", "--depth", depth, "--output", output, *SHORT]
        assert mine("--data", data, "--retrievers", bert, *given).returncode == 0
        found.append([(row["query"], row["positives"]) for row in read(output)])
    assert found == [[(row["query"], row["positives"]) for row in kept]] * 2


def table_rows(table: Any) -> list[Any]:
    return [table[i] for i in range(len(table))]


def test_a_sweep_measures_false_negatives(bert: Path, tmp_path: Path) -> None:
    texts = [f"{WORDS[i % 12]} {WORDS[i % 5]} {i}" for i in range(40)]
    everything = {f"q{i}": {f"d{j}": int(j % 12 == i) for j in range(0, 40, 2)} for i in range(0, 12, 2)}
    write_beir(tmp_path / "judged", texts, WORDS, everything)
    rows = [{"query": WORDS[i], "positives": [texts[i]]} for i in range(12)]
    data, corpus = write_rows(tmp_path / "rows.jsonl", rows), write_corpus(tmp_path / "corpus.jsonl", texts)
    options = ["--judgements", tmp_path / "judged", "--split", "test", "--num_negatives", "4", *SHORT]
    done = mine("--data", data, "--corpus", corpus, "--retrievers", f"bm25,{bert}", *options, "--sweep", "true")
    assert done.returncode == 0, done.stderr
    lines = done.stdout[done.stdout.index("naive") :].splitlines()
    naive = lines[0].split()
    output = tmp_path / "naive.jsonl"
    done = mine(
        "--data",
        data,
        "--corpus",
        corpus,
        "--retrievers",
        f"bm25,{bert}",
        *options,
        "--max_score_ratio",
        "null",
        "--output",
        output,
    )
    mined = read(output)
    pairs = [(WORDS.index(row["query"]), texts.index(text)) for row in mined for text in row["negatives"]]
    false = sum(everything.get(f"q{i}", {}).get(f"d{j}", 0) for i, j in pairs)
    judged = sum(f"d{j}" in everything.get(f"q{i}", {}) for i, j in pairs)
    assert false > 0
    assert naive[2] == str(len(pairs))
    asked = sum(f"q{i}" in everything for i, _ in pairs)
    assert naive[6:] == [str(false), f"{false / asked:.2%}", f"{false / judged:.2%}"]
    assert f"{false} of the {asked} negatives of judged queries are relevant" in done.stdout
    names = [line[:16].strip() for line in lines]
    assert {"rank from 2", "margin 0.1", "ratio 0.95"} <= set(names)


def test_two_ranks_write_what_one_writes(
    pairs: Path, bert: Path, qwen3_reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ranks in (1, 2):
        monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / f"cache-{ranks}"))
        models = ["--retrievers", f"bm25,{bert}", "--judge", qwen3_reranker]
        arguments = ["--data", pairs, *models, "--sampling", "random", *SHORT]
        run_recipe(str(SCRIPT), *map(str, arguments), "--output", str(tmp_path / f"{ranks}.jsonl"), ranks=ranks)
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat --index_search nprobe=4"])
def test_an_index_that_looks_at_everything_changes_nothing(pairs: Path, bert: Path, tmp_path: Path, index: str) -> None:
    pytest.importorskip("faiss", reason="the faiss extra is not installed")
    common = ["--data", pairs, "--retrievers", f"bm25,{bert}", "--depth", "20", *SHORT]
    assert mine(*common, "--output", tmp_path / "exact.jsonl").returncode == 0
    done = mine(*common, "--output", tmp_path / "indexed.jsonl", "--index", *index.split())
    assert done.returncode == 0, done.stderr
    asked = len({(row["query"], row.get("instruction")) for row in read(pairs)})
    assert f"{bert.name}: the index found 100.0% of the 20 nearest documents of each of {asked} queries" in done.stdout
    for row, exact in zip(read(tmp_path / "indexed.jsonl"), read(tmp_path / "exact.jsonl"), strict=True):
        for name in ("positive_scores", "negative_scores"):
            assert row.pop(name) == pytest.approx(exact.pop(name), abs=1e-6)
        assert row == exact


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("IVF4;Flat", "index: FAISS refuses IVF4;Flat: could not parse index string"),
        ("PQ7", "(d) should be a multiple of the number of subquantizers (M)"),
        ("IVF4,Flat --index_search nprob=4", "refuses IVF4,Flat with nprob=4: "),
    ],
)
def test_an_index_that_cannot_be_built(pairs: Path, bert: Path, tmp_path: Path, index: str, message: str) -> None:
    pytest.importorskip("faiss", reason="the faiss extra is not installed")
    done = mine("--data", pairs, "--retrievers", bert, "--output", tmp_path / "a.jsonl", "--index", *index.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_an_index_without_faiss(pairs: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: None)
    done = mine("--data", pairs, "--retrievers", bert, "--output", tmp_path / "a.jsonl", "--index", "Flat")
    assert (done.returncode, done.stdout) == (2, "")
    assert "index needs faiss, not installed; pip install -c constraints.txt -e '.[faiss]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --retrievers to mine with, or a --judge"),
        (["--retrievers", "bm25"], "give either an --output or --sweep"),
        (["--retrievers", "bm25,bm25", "--sweep", "true"], "retrievers: one is given twice"),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--max_score_ratio", "1.5"],
            "max_score_ratio is 1.5, expected a share",
        ),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--rank_to", "200"],
            "rank_to is 200, expected from rank_from",
        ),
        (["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--relabel", "true"], "relabel needs a --judge"),
        (["--retrievers", "bm25,{tmp}/nowhere", "--output", "{tmp}/a.jsonl"], "nowhere: no such file or directory"),
        (["--retrievers", "bm25", "--output", "{tmp}/no/a.jsonl"], "the folder {tmp}/no does not exist"),
        (["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--ceiling", "0.9"], "ceiling needs an embedder"),
        (["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--index", "Flat"], "index needs an embedder"),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--index_search", "a=1"],
            "index_search is for an index",
        ),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--max_score_rato", "1"],
            "did you mean 'max_score_ratio'",
        ),
        (
            ["--retrievers", "bm25", "--judge", "{tmp}", "--scorer", "judge", "--sweep", "true"],
            "a sweep compares thresholds of a retriever's scores",
        ),
        (
            ["--retrievers", "bm25", "--sweep", "true", "--rank_from", "3", "--max_score", "9", "--sampling", "random"],
            "sampling, rank_from, max_score: a sweep tries thresholds of its own, each alone, on the candidates that",
        ),
        (["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--seed", "1"], "seed is for sampling: random"),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--split", "test"],
            "pairs.jsonl: split is test, and this has no",
        ),
        (["--retrievers", "bm25", "--sweep", "true", "--audit", "{tmp}/a.html"], "a sweep writes no audit"),
        (
            ["--judge", "{tmp}", "--output", "{tmp}/a.jsonl", "--audit", "{tmp}/a.html"],
            "a judge only scores the rows; leave out audit",
        ),
        (
            ["--judge", "{tmp}", "--output", "{tmp}/a.jsonl", "--relabel", "true", "--depth", "7"],
            "a judge only scores the rows; leave out depth, relabel",
        ),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--audit", "{tmp}/./a.jsonl"],
            "--output is the same file",
        ),
        (["--retrievers", "bm25", "--output", "{tmp}/a.csv"], "--output {tmp}/a.csv: expected a name in .jsonl"),
        (["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--seed", str(2**63)], "seed is 9223372036854775808"),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--judge_depth", "7", "--relevant", "0.4"],
            "judge_depth, relevant need a --judge",
        ),
        (
            ["--retrievers", "bm25", "--output", "{tmp}/a.jsonl", "--scores", "probability"],
            "scores: probability needs a --judge",
        ),
        (["--retrievers", "given", "--output", "{tmp}/a.jsonl"], "given has no scores"),
        (["--retrievers", "given,bm25", "--scorer", "given", "--output", "{tmp}/a.jsonl"], "given has no scores"),
    ],
)
def test_settings_that_cannot_work(pairs: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = mine("--data", pairs, *(each.format(tmp=tmp_path) for each in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert message.format(tmp=tmp_path) in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "{model}"], "is an embedder"),
        (["--document_max_length", "129"], "--document_max_length 129: {model} reads at most 128 tokens"),
        (["--retrievers", "{model},{reranker}"], "is a reranker"),
        (["--index", "IVF4096,Flat"], "index: IVF4096,Flat has 4,096 lists, and there are "),
        (["--retrievers", "{model},{run}"], "a run file needs query ids; give --data as a folder in the BEIR layout"),
        (["--data", "{beir}", "--split", "test", "--retrievers", "{model},{run}"], "run.trec:2: score: 'x' is not"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    arguments: list[str], message: str, pairs: Path, bert: Path, qwen3_reranker: Path, tmp_path: Path
) -> None:
    write_beir(tmp_path / "beir", WORDS, ["alpha?"], {"q0": {"d0": 1}})
    (tmp_path / "run.trec").write_text("q0 Q0 d1 1 2 tag\nq0 Q0 d2 2 x tag\n")
    model = tmp_path / "model"
    shutil.copytree(bert, model, ignore=shutil.ignore_patterns("*.safetensors"))  # there are no weights to read
    names = {"model": model, "reranker": qwen3_reranker, "run": tmp_path / "run.trec", "beir": tmp_path / "beir"}
    given = [each.format(**names) for each in arguments]
    done = mine("--data", pairs, "--retrievers", model, "--output", tmp_path / "out.jsonl", *given)
    assert done.returncode == 2
    assert message.format(**names) in done.stderr


def test_a_depth_beyond_the_pool_is_all_of_it(pairs: Path, bert: Path, tmp_path: Path) -> None:
    written = []
    for depth in (500, 10**12):
        output = tmp_path / f"{depth}.jsonl"
        done = mine("--data", pairs, "--retrievers", f"bm25,{bert}", "--depth", depth, "--output", output, *SHORT)
        assert done.returncode == 0, done.stderr
        written.append(output.read_text())
    assert written[0] == written[1]


def test_models_of_one_name_are_told_apart(pairs: Path, bert: Path, tmp_path: Path) -> None:
    models = [tmp_path / name / "x" / "final" for name in "ab"]
    tiny_bert(models[0], seed=1), tiny_bert(models[1], seed=2)
    output, options = tmp_path / "mined.jsonl", ["--explain", "true", "--max_score_ratio", "null", *SHORT]
    given = ["--retrievers", f"{models[0]},{models[1]}", "--scorer", models[1]]
    done = mine("--data", pairs, *given, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    assert "with scores of b/x/final" in done.stdout
    names = {name for row in read(output) for each in row["mined"]["negatives"] for name in each["ranks"]}
    assert names == {"a/x/final", "b/x/final"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "file: holds no rows"),
        ([{"query": "a", "positives": [], "negatives": ["b"]}], "positives: the list is empty"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1.0}], "graded pairs have their scores"),
    ],
)
def test_data_that_cannot_be_mined_for(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows)
    done = mine("--data", data, "--retrievers", "bm25", "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_columns_of_the_data_are_named(tmp_path: Path) -> None:
    rows = [{"title": row["query"], "body": row["positives"]} for row in random_rows(8)]
    data, columns = write_rows(tmp_path / "rows.jsonl", rows), "query=title,positive=body"
    done = mine("--data", data, "--retrievers", "bm25", "--columns", columns, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["query"], row["positives"]) for row in written] == [(row["title"], row["body"]) for row in rows]


def test_a_disk_that_fills_leaves_nothing(pairs: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(2 * 2**20 - 4096))
    done = mine("--data", pairs, "--retrievers", "bm25", "--output", small_disk / "out.jsonl")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "out.jsonl" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
