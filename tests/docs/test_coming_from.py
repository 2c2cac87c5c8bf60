"""The examples of docs/coming-from.md: rows in each dialect mean what they should, and our commands train on them."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sentence_transformers
from ranks import run_recipe
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as reranker_losses
from sentence_transformers.sentence_transformer import evaluation
from sentence_transformers.sentence_transformer import losses as embedder_losses
from sentence_transformers.util import mine_hard_negatives

from documents import ROOT, Snippet, commands, in_markdown
from nestling.models.reranker import Reranker
from nestling.records import Record, load_records

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
SIZE, LINES = "list files by size", "count the lines of a file"
TASK = "Find the shell command"
# What makes two steps on a tiny model of a command that is for a real one.
LENGTHS = "--query_max_length 64 --document_max_length 64 --chunk_tokens 128"
TINY = f"--max_steps 2 --batch_size 2 {LENGTHS} --dataloader_num_workers 0 --use_cpu true"
QUICK = ("ms-swift: an embedder", "sentence-transformers: a reranker")  # the others are as slow as these
EXAMPLES: dict[str, list[Record]] = {
    "ms-swift: an embedder": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s"), instruction=TASK),
        Record(LINES, ("wc -l file",), ("wc -w file", "nl file"), instruction=TASK),
        Record("show the first lines", ("head file",)),
    ],
    "ms-swift: a reranker": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s")),
        Record(LINES, ("wc -l file", "grep -c '' file"), ("nl file",)),
    ],
    "sentence-transformers: an embedder": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s")),
        Record(LINES, ("wc -l file",), ("wc -w file", "nl file")),
        Record("show the first lines", ("head file",), ("tail file", "cat file")),
    ],
    "sentence-transformers: a reranker": [
        Record(SIZE, ("ls -S",), score=1.0),
        Record(SIZE, ("ls -t",), score=0.0),
        Record(LINES, ("wc -l file",), score=1.0),
        Record(LINES, ("nl file",), score=0.0),
    ],
    "FlagEmbedding: an embedder": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s"), (0.9,), (0.3, 0.4)),
        Record(LINES, ("wc -l file", "grep -c '' file"), ("wc -w file", "nl file"), (0.95, 0.8), (0.2, 0.5)),
    ],
    "FlagEmbedding: a reranker": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s", "ls -r")),
        Record(LINES, ("wc -l file",), ("wc -w file", "nl file", "cat file")),
    ],
    "Tevatron: an embedder": [
        Record(SIZE, ("ls -S sorts by size",), ("ls -t sorts by time", "du sums sizes")),
        Record(LINES, ("wc -l counts lines",), ("wc -w counts words",)),
    ],
    "NVIDIA NeMo: an embedder": [
        Record(SIZE, ("ls -S",), ("ls -t", "du -s")),
        Record(LINES, ("wc -l file",), ("wc -w file", "nl file")),
    ],
}
# Titles whose rows are of the dialect of pairs under known names; all others have one of the peer's name.
PAIRS = ("sentence-transformers: a reranker", "NVIDIA NeMo: an embedder")


def section(title: str) -> str:
    """What stands between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return found[1]


def blocks(title: str) -> list[Snippet]:
    """Theirs, the rows, ours."""
    return [each for each in in_markdown(section(title), title) if each.kind in ("bash", "json", "python")]


def write_rows(title: str, folder: Path) -> Path:
    """The rows of an example, in a file of the name that both commands have for it."""
    theirs, rows, ours = blocks(title)
    (name,) = re.findall(r"--train (\S+)", ours.text)
    assert name in theirs.text
    (folder / name).write_text(rows.text, encoding="utf-8")
    return folder / name


def test_every_example_is_tested() -> None:
    assert [title for title in re.findall(r"^### (.*)", PAGE, re.M) if ": " in title] == list(EXAMPLES)


@pytest.mark.parametrize("title", EXAMPLES)
def test_rows_are_read_as_they_are(title: str, tmp_path: Path) -> None:
    table = load_records(write_rows(title, tmp_path), cache_dir=tmp_path / "cache")
    assert [table[i] for i in range(len(table))] == EXAMPLES[title]
    named = "pairs" if title in PAIRS else title.partition(":")[0]
    assert table.summary.dialect.startswith(named)


@pytest.mark.parametrize(
    "title", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in EXAMPLES]
)
def test_our_command_trains_on_them(title: str, tmp_path: Path, qwen3: Path, qwen3_base: Path, bert: Path) -> None:
    rows = write_rows(title, tmp_path)
    (command,) = commands(blocks(title)[2])
    recipe = command.words[next(i for i, word in enumerate(command.words) if word.startswith("train/")) :]
    model = qwen3_base if "rerank" in recipe[0] else qwen3 if "Qwen3" in " ".join(recipe) else bert
    dims = ["--matryoshka_dims", "32,16"] if "--matryoshka_dims" in recipe else []
    new = ["--model", str(model), "--train", str(rows), "--output_dir", str(tmp_path / "run"), *dims]
    done = run_recipe(*recipe, *new, *TINY.split())
    assert done.returncode == 0, done.stderr
    assert "final holds the model of step 2" in done.stdout
    if "rerank" in recipe[0]:
        assert 0 < Reranker.from_pretrained(tmp_path / "run" / "final").score([(SIZE, "ls -S")]).item() < 1
    else:
        dim = SentenceTransformer(str(tmp_path / "run" / "final"), device="cpu").get_embedding_dimension()
        assert dim == (48 if model == bert else 64)


def callables(program: ast.Module) -> dict[str, Callable[..., object]]:
    """What a program imports, by name."""
    imported = [node for node in ast.walk(program) if isinstance(node, ast.ImportFrom)]
    return {
        each.name: getattr(importlib.import_module(str(node.module)), each.name)
        for node in imported
        for each in node.names
    }


@pytest.mark.parametrize("title", ["sentence-transformers: an embedder", "sentence-transformers: a reranker"])
def test_the_peers_program_calls_what_there_is(title: str) -> None:
    program = ast.parse(blocks(title)[0].text)
    known = callables(program)
    calls = [node for node in ast.walk(program) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert len(calls) >= 4
    for call in calls:
        assert isinstance(call.func, ast.Name)
        arguments = {str(each.arg): each.value for each in call.keywords}
        inspect.signature(known[call.func.id]).bind(*call.args, **arguments)


def test_the_peers_settings_are_called_so() -> None:
    """Those of sentence-transformers, which is installed, in the first column of its tables."""
    places = (sentence_transformers, evaluation, embedder_losses, reranker_losses)
    known = {name for place in (*places, SentenceTransformer) for name in dir(place)}
    known |= {"mine_hard_negatives", "label", "labels"}
    losses = [each for place in places for each in vars(place).values() if str(each).endswith("Loss'>")]
    for each in (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        mine_hard_negatives,
        CrossEncoder,
        *losses,
    ):
        known |= inspect.signature(each).parameters.keys()
    for title in ("sentence-transformers", "sentence-transformers: a reranker", "mine_hard_negatives"):
        first = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| ")]
        names = [name for cell in first for name in re.findall(r"`(?:model\.)?([A-Za-z_]\w+)", cell)]
        assert len(names) > 8
        assert [name for name in names if name not in known] == [], title
