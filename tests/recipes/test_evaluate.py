"""scripts/evaluate.py as it is run: results, files, and one line with status 2 for everything that cannot work."""

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nestling.models.reranker import Reranker
from recipes.runs import run_main
from scripts.evaluate import main
from sets import write_beir, write_queries_among_documents

SHORT = ["--query_max_length", "64", "--document_max_length", "64"]
SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"

evaluate = partial(run_main, main)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents, one of them in Chinese; two queries."""
    folder = tmp_path_factory.mktemp("data") / "small"
    (folder / "qrels").mkdir(parents=True)
    corpus = ["list files by size", "boundary layer " * 20, "人工智慧"]
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(corpus)])
    write_lines(folder / "queries.jsonl", [{"_id": "q0", "text": "files"}, {"_id": "q1", "text": "layer"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t2\nq1\td1\t1\n")
    return folder


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_model_is_measured_at_every_dimension_and_precision(beir: Path, bert: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = [
        "--dims",
        "48,16",
        "--embedding_precision",
        "float32,binary",
        "--output",
        output,
        "--document_max_length",
        "16",
    ]
    done = evaluate("--model", bert, "--data", beir, "--query_max_length", "16", *options)
    assert done.returncode == 0, done.stderr
    assert "2 queries, 0 cut to 16 tokens" in done.stdout
    assert "3 documents, 1 cut to 16 tokens" in done.stdout
    assert "small/test: documents: 3 texts, 1 truncated; 3 encoded with " in done.stderr
    assert "tokens/s" in done.stderr
    results = json.loads(output.read_text())["results"]
    assert [(row["dim"], row["embedding_precision"]) for row in results] == [
        (48, "float32"),
        (48, "binary"),
        (16, "float32"),
        (16, "binary"),
    ]
    for row in results:
        assert (row["queries"], row["documents"], row["truncated_documents"]) == (2, 3, 1)
        assert list(row["metrics"]) == ["nDCG@10", "MRR@10", "Recall@100", "MAP@100"]
        assert row["metrics"]["Recall@100"] == 1.0
        assert f"{row['metrics']['nDCG@10']:.4f}" in done.stdout


def test_a_set_in_one_json_file_gives_the_metrics_of_its_folder(beir: Path, bert: Path, tmp_path: Path) -> None:
    documents = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    parts = {
        "queries": {"q0": "files", "q1": "layer"},
        "corpus": {each["_id"]: each["text"] for each in documents},
        "relevant_docs": {"q0": {"d0": 2}, "q1": ["d1"]},
    }
    (tmp_path / "set.json").write_text(json.dumps(parts, indent=1))
    output = tmp_path / "results.json"
    done = evaluate("--model", bert, "--data", f"{beir},{tmp_path}/set.json", "--output", output, *SHORT)
    assert done.returncode == 0, done.stderr
    folder, file = json.loads(output.read_text())["results"]
    assert (folder["queries"], folder["documents"]) == (file["queries"], file["documents"]) == (2, 3)
    assert folder["metrics"] == file["metrics"]


def test_dimensions_default_to_those_of_the_model(beir: Path, bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(bert, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "matryoshka_dimensions": [8, 48, 24]}))
    output = tmp_path / "results.json"
    lengths = ["--query_max_length", "16", "--document_max_length", "16"]
    done = evaluate("--model", model, "--data", beir, *lengths, "--output", output)
    assert done.returncode == 0, done.stderr
    assert [row["dim"] for row in json.loads(output.read_text())["results"]] == [48, 24, 8]


def test_bm25_and_a_run_file(beir: Path, tmp_path: Path) -> None:
    done = evaluate("--first_stage", "bm25", "--data", beir, "--output", tmp_path / "bm25.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "bm25.json").read_text())["results"][0]["metrics"]["nDCG@10"] == 1.0
    run = tmp_path / "run.trec"
    run.write_text("q0 Q0 elsewhere 1 3 tag\nq0 Q0 d0 2 2 tag\n")
    done = evaluate("--first_stage", run, "--data", beir, "--output", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert "1 queries are not in the run and count 0" in done.stdout
    assert "1 documents of the run are not in the collection" in done.stdout
    assert json.loads((tmp_path / "run.json").read_text())["results"][0]["metrics"]["MRR@10"] == 0.25


def test_documents_with_the_id_of_their_query_are_left_out_and_said(tmp_path: Path, bert: Path) -> None:
    write_queries_among_documents(tmp_path / "set")
    said = "dropped 5: document with the id of a query, from the results of that query (first at "
    done = evaluate("--model", bert, *SHORT, "--data", tmp_path / "set")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    run = tmp_path / "run.trec"
    run.write_text("t0 Q0 t0 1 3 tag\nt0 Q0 d1 2 2 tag\nt5 Q0 d1 1 2 tag\nt5 Q0 t5 2 1 tag\n")
    done = evaluate("--first_stage", run, "--data", tmp_path / "set", "--output", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "  1 listed documents have the id of their query and are left out\n" in done.stdout
    metrics = json.loads((tmp_path / "run.json").read_text())["results"][0]["metrics"]
    assert metrics["MRR@10"] == pytest.approx((1 + 0.5) / 7)


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data"),
        (["--data", "{beir}"], "either --model or --first_stage"),
        (["--data", "{beir}", "--model", "{model}", "--first_stage", "bm25"], "either --model or --first_stage"),
        (["--data", "{beir}", "--first_stage", "bm25", "--dims", "16"], "need a --model"),
        (["--data", "{beir}", "--model", "{model}", "--dims", "16,0"], "dims: 0 is not a dimension"),
        (["--data", "{beir}", "--model", "{model}", "--dims", "16,8,16"], "dims: 16 is given 2 times"),
        (["--data", "{beir}", "--model", "{model}", "--embedding_precision", "int4"], "int4"),
        (
            ["--data", "{beir}", "--model", "{model}", "--embedding_precison", "int8"],
            "did you mean 'embedding_precision'",
        ),
        (["--data", "{beir}", "--model", "{model}", "--query_max_length", "0"], "query_max_length is 0"),
        (["--data", "{beir}", "--model", "{tmp}/nowhere"], "no such directory"),
        (["--data", "{beir}", "--first_stage", "{tmp}/nowhere.trec"], "no such file"),
        (["--data", "{beir}", "--first_stage", "bm25", "--output", "{tmp}/nowhere/out.json"], "does not exist"),
        (["--data", "{beir}", "--first_stage", "bm25", "--output", "{beir}/corpus.jsonl"], "exists"),
    ],
)
def test_settings_that_cannot_work(arguments: list[str], message: str, beir: Path, bert: Path, tmp_path: Path) -> None:
    assert_refused(evaluate(*(each.format(beir=beir, model=bert, tmp=tmp_path) for each in arguments)), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "48,64"], "dims: 64 is more than the model's embedding has, 48"),
        (["--document_max_length", "129"], "reads at most 128 tokens"),
        (["--split", "dev"], "there is no 'dev'; available: test"),
        (["--data", "{tmp}/nowhere"], "there is no such folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    arguments: list[str], message: str, beir: Path, bert: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((bert / "config.json").read_bytes())  # there are no weights to read
    lengths = ["--query_max_length", "16", "--document_max_length", "16"]
    given = [each.format(tmp=tmp_path) for each in arguments]
    assert_refused(evaluate("--model", model, "--data", beir, *lengths, *given), message)


def test_a_run_of_other_queries_is_refused(beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("other Q0 d0 1 3 tag\n")
    done = evaluate("--first_stage", run, "--data", beir)
    assert done.returncode == 2
    assert "lists none of the 2 queries" in done.stderr


def test_the_command_itself() -> None:
    start = time.monotonic()
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5
    assert "--first_stage" in shown.stdout
    refused = subprocess.run([sys.executable, SCRIPT, "--dims", "8,8"], capture_output=True, text=True, check=False)
    assert_refused(refused, "data")


def test_a_reranker_orders_the_candidates_anew(beir: Path, qwen3_reranker: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.jsonl"
    rows = [{"query-id": f"q{i}", "corpus-ids": ["d0", "d1", "d2"]} for i in range(2)]
    lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "results.json"
    done = evaluate("--first_stage", lists, "--data", beir, "--reranker", qwen3_reranker, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "6 candidates of 2 queries, 3 to 3 each" in done.stdout
    by_order = {row["order"]: row["metrics"] for row in json.loads(output.read_text())["results"]}
    assert list(by_order) == ["first stage", "reranked"]  # lists have no order to fuse with
    assert by_order["first stage"]["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)  # that of a random one

    ranker = Reranker.from_pretrained(qwen3_reranker)
    texts = ["list files by size", ("boundary layer " * 20).strip(), "人工智慧"]
    places = [[each.index for each in ranker.rank(query, texts)].index(i) for i, query in enumerate(["files", "layer"])]
    assert by_order["reranked"]["MRR@10"] == pytest.approx(sum(1 / (place + 1) for place in places) / 2)


def test_an_embedder_and_a_reranker_in_turn(beir: Path, bert: Path, qwen3_reranker: Path) -> None:
    done = evaluate("--model", bert, "--data", beir, "--reranker", qwen3_reranker, "--depth", "2", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "4 candidates of 2 queries, 2 to 2 each" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("small/test  ")] == [
        "first",
        "reranked",
        "fused",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first_stage", "lists.jsonl"], "candidate lists have no order to measure; give a --reranker"),
        (["--model", "m", "--reranker", "r", "--dims", "48,16"], "a reranker reads one first stage"),
        (["--first_stage", "a.jsonl", "--reranker", "r", "--rerank_weight", "0.5"], "and candidate lists have none"),
        (["--first_stage", "bm25", "--reranker", "r", "--depth", "0"], "depth is 0, expected at least 1"),
        (["--first_stage", "bm25", "--reranker", "a/b/c"], "--reranker a/b/c: no such directory"),
    ],
)
def test_what_a_reranker_cannot_do(beir: Path, options: list[str], message: str) -> None:
    done = evaluate(*options, "--data", beir)
    assert done.returncode == 2
    assert message in done.stderr


def test_two_sets_of_one_name_are_refused(beir: Path, bert: Path, tmp_path: Path) -> None:
    shutil.copytree(beir, tmp_path / beir.name)
    done = evaluate("--model", bert, "--data", f"{beir},{tmp_path / beir.name}", "--output", tmp_path / "out.json")
    assert_refused(done, "data: two datasets are called 'small/test'; give each a name of its own")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.trec", "q0 Q0 d1 1 2 tag\nq0 Q0 d2 2 x tag\n", "run.trec:2: score: 'x' is not a finite number"),
        ("run.trec", "q0 Q0 x1 1 2 tag\n", "lists no document of small/test for any of its queries"),
        ("lists.jsonl", '{"query-id": "q0", "corpus-ids": ["x"]}\n', "lists.jsonl:1: corpus-ids[0]: x is not in"),
    ],
)
def test_candidates_that_cannot_be_used_are_refused_before_the_weights_are_read(
    name: str, content: str, message: str, beir: Path, qwen3_reranker: Path, tmp_path: Path
) -> None:
    reranker = tmp_path / "reranker"
    shutil.copytree(qwen3_reranker, reranker, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / name).write_text(content)
    assert_refused(evaluate("--first_stage", tmp_path / name, "--data", beir, "--reranker", reranker), message)


def test_documents_are_read_as_far_as_the_directory_says(bert: Path, tmp_path: Path) -> None:
    """Documents differ behind a header only: cut at 32 tokens they are alike, at the directory's 120 they are not."""
    header = "we list all of the files by their size in here " * 3
    topics = ["boundary layer", "hot wings", "tar archive", "shock wave"]
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(len(topics))}
    data = write_beir(tmp_path / "headed", [header + each for each in topics], topics, qrels)
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 120, "do_lower_case": False}))
    served = SentenceTransformer(str(model), device="cpu")
    queries, documents = (torch.from_numpy(served.encode(list(each))) for each in (data.queries, data.documents))
    own = (queries @ documents.T).diagonal()
    expected = float((1 / (queries @ documents.T >= own[:, None]).sum(dim=1)).mean())
    rows = []
    for name, lengths in (("own", []), ("short", ["--document_max_length", "32"])):
        output = tmp_path / f"{name}.json"
        done = evaluate("--model", model, "--data", tmp_path / "headed", *lengths, "--output", output)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(output.read_text())["results"][0])
    assert [(row["document_max_length"], row["truncated_documents"]) for row in rows] == [(120, 0), (32, 4)]
    assert rows[0]["metrics"]["MRR@10"] == pytest.approx(expected)
    assert rows[1]["metrics"]["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), "all four are alike"
