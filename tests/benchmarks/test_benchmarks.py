"""mteb computes the same scores as Nestling: embedders at every dimension, rerankers, its tasks and BEIR folders."""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import mteb
import pytest
import torch
from datasets import Dataset
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from nestling.benchmarks.models import MtebEmbedder, MtebReranker
from nestling.benchmarks.task_scores import measure_embedder, measure_reranker
from nestling.benchmarks.tasks import BeirTask, load_task, open_task
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.retrieval import Candidates, bm25_run, evaluate_candidates, evaluate_embedder, rerank
from recipes.runs import run_main
from scripts.evaluate import main
from sets import Judged, random_set, write_beir, write_queries_among_documents
from tiny import tiny_bert

evaluate = partial(run_main, main)

# mteb rounds all its figures but MRR to five digits.
ROUNDED = 5.01e-6
LENGTHS = {"query_max_length": 64, "document_max_length": 64}


def assert_same(theirs: dict[str, float], ours: dict[str, float]) -> None:
    assert theirs == pytest.approx(ours, abs=ROUNDED)
    assert theirs["MRR@10"] == pytest.approx(ours["MRR@10"], abs=1e-9)


def distinct_set(folder: Path, documents: int = 40) -> Path:
    """Documents that are all different, queries with one to three relevant ones, one query with none."""
    texts = [f"{['alpha', 'beta', 'gamma', 'delta'][i % 4]} number {i} of {i * i}" for i in range(documents)]
    asked = [f"which is number {i * 3}?" for i in range(9)]
    qrels: Judged = {f"q{i}": {f"d{(5 * i + j) % documents}": 1 + j for j in range(1 + i % 3)} for i in range(9)}
    qrels["q4"] = {"d1": 0}
    write_beir(folder, texts, asked, qrels)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distinct_set(tmp_path_factory.mktemp("data") / "small")


def test_a_folder_has_the_same_scores_at_every_dimension(folder: Path, qwen3: Path) -> None:
    embedder, task = Embedder.from_pretrained(qwen3), open_task(str(folder), "test")
    assert isinstance(task, BeirTask)
    ours = evaluate_embedder(embedder, task.data, [64, 32, 8], **LENGTHS)
    found = list(measure_embedder(MtebEmbedder(embedder, **LENGTHS), [task], [64, 32, 8]))
    assert [each.dim for each in found] == [64, 32, 8]
    for each in found:
        (splits,) = each.splits
        assert (splits.name, splits.queries, splits.documents) == ("small/test", 9, 40)
        assert each.dim is not None
        assert_same(splits.metrics, ours[each.dim])
    assert ours[64] != ours[8]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mteb's own calls of itself
def test_sentence_transformers_through_mteb_has_the_same_scores(folder: Path, qwen3: Path) -> None:
    from sentence_transformers import SentenceTransformer

    task = open_task(str(folder), "test")
    load_task(task)
    theirs = mteb.evaluate(
        SentenceTransformer(str(qwen3), device="cpu"), task, cache=None, co2_tracker=False, show_progress_bar=False
    )
    (ours,) = measure_embedder(MtebEmbedder(Embedder.from_pretrained(qwen3), **LENGTHS), [task], [64])
    for name in ("ndcg_at_10", "mrr_at_10", "recall_at_100", "map_at_100", "ndcg_at_1"):
        expected = theirs.task_results[0].scores["test"][0][name]
        assert ours.result.scores["test"][0][name] == pytest.approx(expected, abs=ROUNDED)


def test_cranfield_has_the_same_scores(shared_data: Path, tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "model")
    output = tmp_path / "results.json"
    lengths = [f"--{name}={length}" for name, length in LENGTHS.items()]
    cranfield = str(shared_data / "cranfield")
    dims = ["--dims", "48,24"]
    done = evaluate("--model", model, "--data", cranfield, "--mteb", cranfield, *lengths, *dims, "--output", output)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["results"]
    names = [(row["data"], row["dim"]) for row in rows]
    assert names == [(name, dim) for name in ("cranfield/test", "cranfield/test (mteb)") for dim in (48, 24)]
    for ours, theirs in zip(rows[:2], rows[2:], strict=True):
        for count in ("queries", "documents", "truncated_queries", "truncated_documents"):
            assert theirs[count] == ours[count]
        assert_same(theirs["metrics"], ours["metrics"])


def test_mteb_orders_equal_documents_by_id_and_we_average(tmp_path: Path, bert: Path) -> None:
    write_beir(tmp_path / "twins", ["alpha", "alpha"], ["alpha"], {"q0": {"d0": 1}})
    embedder, task = Embedder.from_pretrained(bert), open_task(str(tmp_path / "twins"), "test")
    assert isinstance(task, BeirTask)
    (found,) = measure_embedder(MtebEmbedder(embedder, **LENGTHS), [task], [48])
    assert found.splits[0].metrics["MRR@10"] == 0.5
    assert evaluate_embedder(embedder, task.data, [48], **LENGTHS)[48]["MRR@10"] == 0.75


@pytest.fixture(scope="module")
def reranker(qwen3_base: Path) -> Reranker:
    return Reranker.from_pretrained(qwen3_base)


def test_a_reranker_has_the_same_scores_after_bm25(tmp_path: Path, reranker: Reranker) -> None:
    random_set(tmp_path / "random", documents=60, queries=8)
    task = open_task(str(tmp_path / "random"), "test")
    assert isinstance(task, BeirTask)
    candidates = Candidates.from_run(bm25_run(task.data, depth=7), task.data, 7)
    ours = evaluate_candidates(rerank(reranker, task.data, candidates), candidates, task.data)
    (found,) = measure_reranker(MtebReranker(reranker), [task], first_stage="bm25", depth=7)
    assert found.dim is None
    assert_same(found.splits[0].metrics, ours)


def test_a_reranker_has_the_same_scores_after_an_embedder(
    folder: Path, reranker: Reranker, qwen3: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    arguments = ["--model", qwen3, "--dims", "32", "--reranker", reranker.source, "--depth", "6", "--output", output]
    done = evaluate(*map(str, arguments), "--data", str(folder), "--mteb", str(folder))
    assert done.returncode == 0, done.stderr
    rows = {(row["data"], row["order"]): row["metrics"] for row in json.loads(output.read_text())["results"]}
    assert_same(rows["small/test (mteb)", "reranked"], rows["small/test", "reranked"])
    assert rows["small/test", "reranked"] != rows["small/test", "first stage"]
    result = json.loads((tmp_path / "results.mteb" / "small.json").read_text())
    assert result["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(
        rows["small/test", "reranked"]["nDCG@10"], abs=ROUNDED
    )


def metadata(prompt: Any = None, **more: Any) -> TaskMetadata:
    settings: dict[str, Any] = {"type": "Retrieval", "main_score": "ndcg_at_10", **more}
    source: Any = {"path": "nowhere", "revision": "1"}
    return TaskMetadata(name="T", description="", dataset=source, eval_langs=["eng-Latn"], prompt=prompt, **settings)


@pytest.mark.parametrize(
    ("prompt", "given", "expected"),
    [
        (None, None, None),
        ("find it", None, "find it"),
        ({"query": "find it"}, None, "find it"),
        ({"document": "a text"}, None, None),
        ("find it", "mine", "mine"),
    ],
)
def test_queries_get_the_instruction_of_their_task(
    prompt: Any, given: str | None, expected: str | None, qwen3: Path
) -> None:
    embedder = Embedder.from_pretrained(qwen3)
    model = MtebEmbedder(embedder, **LENGTHS, instruction=given)
    batches = [{"text": ["files", "folders"]}, {"text": ["files"]}]
    for prompt_type in (PromptType.query, None):
        found = model.encode(batches, task_metadata=metadata(prompt), prompt_type=prompt_type)
        wanted = embedder.encode(["files", "folders", "files"], kind="query", max_length=64, instruction=expected)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    found = model.encode(batches, task_metadata=metadata(prompt), prompt_type=PromptType.document)
    wanted = embedder.encode(["files", "folders", "files"], kind="document", max_length=64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_model_without_instructions_keeps_its_prompts(tmp_path: Path) -> None:
    embedder = Embedder.from_pretrained(tiny_bert(tmp_path, prompts={"query": "query: ", "document": "passage: "}))
    model = MtebEmbedder(embedder, **LENGTHS, dim=16)
    found = model.encode([{"text": ["files"]}], task_metadata=metadata("find it"), prompt_type=PromptType.query)
    expected = torch.nn.functional.normalize(embedder.encode(["files"], kind="query", max_length=64)[:, :16], dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [(None, None, ["task"] * 3), (None, ["x", "x", "y"], ["x", "x", "y"]), ("mine", ["x", "x", "y"], ["mine"] * 3)],
)
def test_rerankers_read_instructions_beside_the_query(
    given: str | None, own: list[str] | None, expected: list[str], reranker: Reranker
) -> None:
    queries, documents = ["files", "files", "users"], ["ls", "cat", "who"]
    asked: dict[str, list[str]] = {"query": queries, "text": [f"{query} and more" for query in queries]}
    found = MtebReranker(reranker, instruction=given).predict(
        [asked | ({"instruction": own} if own else {})],
        [{"text": documents[:2]}, {"text": documents[2:]}],
        task_metadata=metadata("task"),
    )
    wanted = [
        reranker.score([(query, document)], instruction=instruction)
        for query, document, instruction in zip(queries, documents, expected, strict=True)
    ]
    torch.testing.assert_close(found.sigmoid(), torch.cat(wanted), rtol=0, atol=1e-6)


def test_equal_queries_and_documents_keep_their_own_lengths(tmp_path: Path) -> None:
    """Where embeddings are kept for other dimensions."""
    model = MtebEmbedder(Embedder.from_pretrained(tiny_bert(tmp_path)), query_max_length=5, document_max_length=64)
    model.cache_embeddings = True
    batches = [{"text": ["files and folders and users and disks"]}]
    found = [model.encode(batches, task_metadata=metadata(), prompt_type=kind) for kind in PromptType]
    assert model.truncated == (1, 0)
    assert not torch.equal(*found)


class Likeness(AbsTaskSTS):
    """A task of another kind, as mteb's own are."""

    metadata = metadata(type="STS", main_score="cosine_spearman", category="t2t")
    min_score = 0
    max_score = 5

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        rows = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["a", "c", "b", "a"], "score": [5.0, 2.0, 2.0, 1.0]}
        self.dataset = {"default": {"test": Dataset.from_dict(rows)}}  # type: ignore[dict-item]
        self.data_loaded = True


def test_tasks_that_are_no_retrieval_run_too(qwen3: Path, reranker: Reranker) -> None:
    model = MtebEmbedder(Embedder.from_pretrained(qwen3), **LENGTHS)
    (found,) = measure_embedder(model, [Likeness()], [64])
    assert (found.splits[0].name, found.splits[0].queries) == ("T/test", 0)
    assert list(found.splits[0].metrics) == ["cosine_spearman"]
    with pytest.raises(ValueError, match="--mteb T: it is no retrieval task, so there is nothing to rerank"):
        list(measure_reranker(MtebReranker(reranker), [Likeness()], depth=10))


def test_a_task_keeps_the_candidates_that_it_has(folder: Path, reranker: Reranker) -> None:
    task = open_task(str(folder), "test")
    assert isinstance(task, BeirTask)
    few = Candidates.from_run({query: {"d0": 1.0, "d5": 2.0} for query in task.data.query_ids}, task.data, 2)
    load_task(task)
    task.rerank(few)
    (found,) = measure_reranker(MtebReranker(reranker), [task], depth=10)
    assert_same(found.splits[0].metrics, evaluate_candidates(rerank(reranker, task.data, few), few, task.data))


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mteb", "SciFactt"], "neither a BEIR folder nor a task of mteb: 'SciFactt' not found. Did you mean"),
        (["--mteb", "SciFact"], "--mteb SciFact: its data is on the hub and was not found there or in the cache"),
        (["--mteb", "{tmp}"], "a BEIR folder holds corpus.jsonl"),
        (["--mteb", "{folder},{folder}"], "mteb: a task is given twice"),
        (["--mteb", "{folder},{folder}/"], "--mteb: two tasks are called small; rename a folder"),
        (
            ["--mteb", "STS12", "--reranker", "{tmp}/model"],
            "--mteb STS12: it is no retrieval task, so there is nothing to rerank",
        ),
        (
            ["--mteb", "{folder}", "--embedding_precision", "int8"],
            "mteb measures float32; embedding_precision is of --data",
        ),
        (["--mteb", "{folder}", "--output", "{tmp}/taken.json"], "taken.mteb exists"),
    ],
)
def test_invalid_tasks_are_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, folder: Path, bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken.mteb").mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((bert / "config.json").read_bytes())  # there are no weights to read
    given = [each.format(folder=folder, tmp=tmp_path) for each in arguments]
    lengths = [f"--{name}={length}" for name, length in LENGTHS.items()]
    assert_refused(evaluate("--model", model, *lengths, *given), message)


def test_mteb_needs_a_model(folder: Path, reranker: Reranker) -> None:
    assert_refused(evaluate("--first_stage", "bm25", "--mteb", folder), "mteb measures models")


def test_mteb_leaves_out_documents_with_the_id_of_their_query(folder: Path, tmp_path: Path) -> None:
    assert BeirTask(write_queries_among_documents(tmp_path / "set")).ignore_identical_ids
    task = open_task(str(folder), "test")
    assert isinstance(task, BeirTask)
    assert not task.ignore_identical_ids


def test_queries_without_a_relevant_document_stay_in_the_mean(folder: Path) -> None:
    task = open_task(str(folder), "test")
    load_task(task)
    assert isinstance(task, BeirTask)
    judged = task.dataset["default"]["test"]["relevant_docs"]
    assert judged["q4"] == {"d0": 0}
    assert len(judged) == 9
