"""A folder of vectors in place of a guide or teacher: found by text, complete, unchanged in a resumed run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mining.small import random_rows, write_rows
from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, parse_config
from nestling.mining.frozen_vectors import open_frozen_vectors, require_frozen_models
from nestling.mining.stored_vectors import StoredVectors, require_stored_vectors
from nestling.records import load_records
from nestling.records.record import query_id, text_id

CPU = torch.device("cpu")
ROWS = random_rows(12)
DISTINCT = sorted({text for row in ROWS for text in (row["query"], *row["positives"], *row["negatives"])})
VALUES = np.random.default_rng(0).normal(size=(len(DISTINCT), 6))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "stored"
    folder.mkdir()
    write(folder, DISTINCT, VALUES)
    return folder


def write(folder: Path, texts: list[str], values: np.ndarray) -> None:
    write_rows(folder / "texts.jsonl", [{"text": text} for text in texts])
    np.save(folder / "vectors.npy", values.astype(np.float32))


def opened(folder: Path) -> tuple[EmbedConfig, list[Source]]:
    rows = write_rows(folder.parent / "rows.jsonl", ROWS)
    flags = ["--model=m", f"--output_dir={folder.parent / 'run'}", f"--train={rows}", f"--loss.guide={folder}"]
    return parse_config(EmbedConfig, None, flags), [Source(load_records(rows, progress=False))]


def test_each_text_has_its_vector_whatever_its_instruction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, sources = opened(folder)
    monkeypatch.setattr("nestling.mining.frozen_vectors.is_deepspeed_zero3_enabled", lambda: True)
    require_frozen_models(config)  # nothing would be sharded
    require_stored_vectors(config, sources)
    (vectors,) = open_frozen_vectors(config, sources, CPU, show=False).guide
    assert vectors is not None
    ids = torch.tensor([query_id(row["query"], row.get("instruction")) for row in ROWS])
    expected = torch.from_numpy(VALUES / np.linalg.norm(VALUES, axis=1, keepdims=True)).float()
    of_queries = expected[[DISTINCT.index(row["query"]) for row in ROWS]]
    torch.testing.assert_close(vectors.queries.take(ids), of_queries, atol=1e-3, rtol=0)
    documents = [text for row in ROWS for text in row["positives"]]
    found = vectors.documents.take(torch.tensor([text_id(text) for text in documents]))
    torch.testing.assert_close(found, expected[[DISTINCT.index(text) for text in documents]], atol=1e-3, rtol=0)


def test_a_text_without_a_vector_is_named_by_file_and_line(folder: Path) -> None:
    left_out = ROWS[6]["query"]
    line = 1 + next(i for i, row in enumerate(ROWS) if left_out in (row["query"], *row["positives"], *row["negatives"]))
    kept = [i for i, text in enumerate(DISTINCT) if text != left_out]
    write(folder, [DISTINCT[i] for i in kept], VALUES[kept])
    message = rf"rows\.jsonl:{line}: loss\.guide: .*stored has no vector of {re.escape(repr(left_out))}, nor of 0 other"
    with pytest.raises(ValueError, match=message):
        require_stored_vectors(*opened(folder))


def test_a_resumed_run_refuses_vectors_that_have_changed(folder: Path) -> None:
    config, sources = opened(folder)
    run = Path(config.output_dir)
    run.mkdir()
    open_frozen_vectors(config, sources, CPU, show=False).record(run)
    require_stored_vectors(config, sources)
    write(folder, DISTINCT, VALUES[::-1])
    with pytest.raises(ValueError, match=r"loss\.guide: .*stored is not what .*run began with: vectors\.npy changed"):
        require_stored_vectors(config, sources)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VALUES[1:], r"vectors\.npy: float32 of shape .*; expected floating point of shape \["),
        (VALUES * (np.arange(len(VALUES)) != 3)[:, None], r"vectors\.npy: row 3 has a length outside"),
        (np.where(np.arange(6) == 2, np.nan, VALUES), r"vectors\.npy: row 0 has a length outside"),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, values: np.ndarray, message: str) -> None:
    write(folder, DISTINCT, values)
    with pytest.raises(ValueError, match=message):
        StoredVectors(folder)


def test_a_line_without_a_text_is_refused(folder: Path) -> None:
    (folder / "texts.jsonl").write_text(json.dumps({"text": 3}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"texts\.jsonl:1: expected"):
        StoredVectors(folder)
