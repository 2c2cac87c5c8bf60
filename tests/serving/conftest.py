"""A process that serves small models, with or without faults."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import ROOT, environment

import warm
from nestling.export.reranker import export_reranker
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import EncoderSettings, RerankerSettings
from tiny import tiny_bert, tiny_cross_encoder, tiny_qwen3


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Embedders and rerankers by the names under which they are served."""
    folder = tmp_path_factory.mktemp("served")
    qwen3, other = tiny_qwen3(folder / "qwen3"), tiny_qwen3(folder / "other", seed=5)
    for each in (qwen3, other):
        (each / "sentence_bert_config.json").write_text('{"max_seq_length": 128, "do_lower_case": false}')
        config = json.loads((each / "config.json").read_text())
        (each / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": [64, 32]}))
    plain = tiny_bert(folder / "plain", normalize=False)
    e5 = tiny_bert(folder / "e5", prompts={"query": "query: ", "document": "passage: "})
    settings = RerankerSettings(instruction="Given a shell task, find the command")
    base = tiny_qwen3(folder / "base", sentence_transformers=False)
    reranker = Reranker.from_pretrained(base, settings=settings)
    export_reranker(reranker, folder / "causal", trained=False)
    export_reranker(reranker, folder / "classifier", trained=False, shape="classifier")
    rerankers = {"causal": folder / "causal", "classifier": folder / "classifier"}
    kinds = {"encoder": EncoderSettings(), "instructed": EncoderSettings("Find it:", activation="none")}
    kinds["short"] = EncoderSettings(query_max_length=40, document_max_length=8)
    for name, own in kinds.items():
        base = tiny_cross_encoder(folder / f"{name}-base", seed=7)
        export_reranker(Reranker.from_pretrained(base, settings=own), folder / name, trained=False)
        rerankers[name] = folder / name
    return {"qwen3": qwen3, "other": other, "plain": plain, "e5": e5, **rerankers}


@pytest.fixture(scope="package")
def url(models: dict[str, Path]) -> Iterator[str]:
    """Address of a process that serves them all."""
    with serving(models) as address:
        yield address


@contextmanager
def serving(models: Mapping[str, Path]) -> Iterator[str]:
    """Address of a process that serves some models by their names."""
    served = [f"{name}={directory}" for name, directory in models.items()]
    command = [sys.executable, ROOT / "tests" / "small_server.py", *served]
    process = warm.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://")
    yield address
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=30)
