"""From a folder of documents to a verdict: configs/pipeline/folder.yaml with tiny models and the stand-in writer."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import ROOT, environment, python

import warm
from recipes.test_pipeline import found, kill_group, read, results, run_pipeline, served, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
PAGES = ("data.md", "mining.md", "models.md", "serving.md", "synthesis.md")
SHORT = {"query_max_length": 32, "document_max_length": 64}
TRAINING = {**SHORT, "save_steps": 1, "dataloader_num_workers": 0, "use_cpu": "true", "batch_size": 16}
SETTINGS = {
    "documents": {"max_tokens": 400, "overlap": 32},
    "mine": SHORT,
    "embed": {**TRAINING, "matryoshka_dims": "[32,16]", "max_steps": 6},
    "remine": SHORT,
    "rerank": {**TRAINING, "max_steps": 4},
    "evaluate": {**SHORT, "dims": "[32,16]", "depth": 5},
}


@pytest.fixture(scope="module")
def command(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command of a pipeline, but for its output_dir, and a stand-in writer that it asks."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "documents").mkdir()
    for page in PAGES:
        shutil.copy(ROOT / "docs" / page, folder / "documents")
    writer = warm.Popen(python("data/stand_in_writer.py", "--port", "0"), cwd=ROOT, env=environment(),
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert writer.stdout is not None
    given = {"documents.folder": folder / "documents", "queries.endpoint.url": writer.stdout.readline().strip()}
    given |= {f"{section}.{name}": value for section, of in SETTINGS.items() for name, value in of.items()}
    given["serve"] = json.dumps(served(folder, "healthy"))
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(NESTLING_CACHE=str(folder / "cache")).items():
            patch.setenv(name, value)
        yield ["scripts/pipeline.py", "--config", "configs/pipeline/folder.yaml", "--embedder_model", str(bert), *flags]
    writer.terminate()
    writer.wait(timeout=30)
    writer.stdout.close()


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that nobody interrupted, and what it said."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run_pipeline([*command, "--output_dir", str(folder)])


def files(run: Path) -> dict[str, str]:
    """`results`, and digests of the corpus and of what is held out; no journals, whose answers come in any order."""
    data = [*run.glob("steps/documents/corpus/corpus.jsonl"), *run.glob("steps/split/held-out/**/*.*")]
    digests = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in data}
    return {name: each for name, each in results(run).items() if "journal" not in name} | digests


def test_a_folder_becomes_models_and_a_verdict(whole: tuple[Path, str], command: list[str]) -> None:
    folder, said = whole
    again = [*command, "--output_dir", str(folder)]
    first = ["documents", "queries", "split", "check", "mine", "embed", "remine", "rerank", "choose", "evaluate-bm25"]
    states = found(said)
    assert list(states)[: len(first)] == first and list(states)[-2:] == ["serve", "report"]
    rows = [json.loads(line) for line in (folder / "steps/documents/corpus/corpus.jsonl").read_text().splitlines()]
    assert {row["metadata"]["path"] for row in rows} == set(PAGES)
    assert {path.name for path in (folder / "steps/split/held-out/qrels").iterdir()} == {"dev.tsv", "test.tsv"}
    verdict = said.splitlines()[-1]
    assert re.match(r"verdict: \w+ .* the base .* BM25 .*; nDCG@10 on \d+ queries: held-out/test .*; served, ", verdict)
    assert verdict.partition("; all steps")[0].split(": ")[0] in (folder / "report.html").read_text()
    before = files(folder)
    assert {state for state in found(run_pipeline(again)).values() if not state.startswith("left out")} == {"done"}
    assert files(folder) == before
    failed = warm.run(python(*again, "--only", "evaluate", "--fail_if", "worse"), cwd=ROOT)
    assert "worse than BM25" in verdict
    assert failed.returncode == 3
    assert failed.stdout.splitlines()[-1] == "fail_if worse: the exit status is 3"


def test_killed_at_three_moments_it_ends_with_the_same_files(
    whole: tuple[Path, str], command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fewer = ("check", "remine", "reranker_model", "rerank", "serve", "report")
    command = [*command, "--output_dir", str(run), *(word for name in fewer for word in (f"--{name}", "null"))]
    moments = {
        "documents": ("corpus/documents.journal.jsonl", r"\A(?:[^\n]*\n){2}"),
        "queries": ("pairs.journal.jsonl", r"\A(?:[^\n]*\n){40}"),
        "embed": ("run/metrics.jsonl", r'"step": 3,'),
    }
    for step, (file, pattern) in moments.items():
        process = start(command)
        wait_for(run / "steps" / step / file, process, pattern)
        kill_group(process)
        assert json.loads(read(run / "steps" / step / "step.json"))["done"] is False
    assert found(run_pipeline(command))["embed"] == "unfinished: resumes"
    ended = files(run)
    assert {"steps/split/held-out/train.jsonl", "steps/mine/mined.jsonl", "embedder.json"} <= ended.keys()
    assert ended.items() <= files(whole[0]).items()
