"""A frozen model's embeddings of a batch: of the right texts, with its own prompts, kept in the cache."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mining.small import random_rows, write_rows
from nestling.batches.embed_collation import EmbedCollator
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.config import EmbedConfig, parse_config
from nestling.mining.frozen_models import FILE, record_models
from nestling.mining.frozen_vectors import open_frozen_vectors, require_frozen_models
from nestling.models.embedder import Embedder
from nestling.records import load_records

CPU = torch.device("cpu")


def config_of(guide: Path | None, *more: str) -> EmbedConfig:
    flags = [
        "--model=m",
        "--output_dir=o",
        "--train=t",
        "--precision=fp32",
        *more,
        *([f"--loss.guide={guide}"] if guide else []),
    ]
    return parse_config(EmbedConfig, None, flags)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))
    rows = write_rows(tmp_path / "rows.jsonl", random_rows(12))
    graded = write_rows(
        tmp_path / "graded.jsonl", [{"sentence1": "a", "sentence2": f"b{i}", "score": i} for i in range(4)]
    )
    return [Source(load_records(each, progress=False)) for each in (rows, graded)]


def test_a_batch_has_the_embeddings_of_its_texts(
    bert: Path, sources: list[Source], capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Embedder.from_pretrained(bert)
    vectors = open_frozen_vectors(config_of(bert), sources, CPU, show=True)
    assert vectors.guide[1] is None, "graded pairs have no negatives"
    collator = EmbedCollator(
        sources,
        RowSampler(positives=2, negatives=2, seed=0),
        guide.text_tokenizer,
        guide.prompts,
        query_max_length=16,
        document_max_length=16,
        chunk_tokens=64,
        rank=1,
        world_size=2,
    )
    indices = BatchIndices(0, [7, 0, 3, 5, 10, 9], [0, 1, 0, 2, 0, 0])
    batch = vectors.attach(collator[indices])
    assert batch.guide is not None
    table, sampler = sources[0].table, collator.row_sampler
    records = [table[row] for row in indices.rows]
    of_queries = [
        guide.encode([each.query], kind="query", max_length=99, instruction=each.instruction) for each in records
    ]
    documents = []
    for row, epoch, record in zip(indices.rows, indices.row_epochs, records, strict=True):
        positives, negatives = sampler(table, row, epoch)
        documents += [record.positives[i] for i in positives] + [record.negatives[i] for i in negatives]
    of_documents = guide.encode(documents, kind="document", max_length=99)
    torch.testing.assert_close(batch.guide[0], torch.cat(of_queries), atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.guide[1], of_documents, atol=1e-3, rtol=0)
    np.testing.assert_allclose(batch.guide[1].norm(dim=1), 1, atol=1e-6)
    assert "guide, rows: queries: 0 in the cache" in capsys.readouterr().out
    assert batch.teacher_vectors is None
    teacher = ("--loss.distillation_weight=1", f"--loss.teacher={bert}", "--loss.teacher_temperature=0.05")
    as_teacher = open_frozen_vectors(config_of(None, *teacher), sources, CPU, show=True).attach(collator[indices])
    assert as_teacher.guide is None and as_teacher.teacher_vectors is not None
    assert all(map(torch.equal, as_teacher.teacher_vectors, batch.guide))
    assert "teacher, rows: queries: 10 in the cache\n" in capsys.readouterr().out


def test_base_is_the_model_that_is_trained(
    bert: Path, sources: list[Source], capsys: pytest.CaptureFixture[str]
) -> None:
    named = open_frozen_vectors(config_of(bert), sources, CPU, show=False)
    base = open_frozen_vectors(config_of(None, f"--model={bert}", "--loss.guide=base"), sources, CPU, show=True)
    assert base.models == named.models and "guide" in base.models
    assert "guide, rows: queries: 10 in the cache" in capsys.readouterr().out
    with pytest.raises(ValueError, match="model m: "):
        require_frozen_models(config_of(None, "--loss.guide=base"))


def test_without_a_guide_nothing_is_encoded(sources: list[Source]) -> None:
    vectors = open_frozen_vectors(config_of(None), sources, CPU, show=True)
    assert vectors.guide == vectors.teacher == [None, None]


def test_a_guide_that_would_be_sharded_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.mining.frozen_vectors.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"loss\.guide: with ZeRO-3"):
        require_frozen_models(config_of(bert))


def test_a_resumed_run_refuses_a_guide_and_a_teacher_that_have_changed(
    bert: Path, sources: list[Source], tmp_path: Path
) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(bert, model)
    teacher = ("--loss.distillation_weight=1", f"--loss.teacher={model}", "--loss.teacher_temperature=0.05")
    config, distilled = (config_of(*each, f"--output_dir={run}") for each in ((model,), (None, *teacher)))
    begun = open_frozen_vectors(config, sources, CPU, show=False)
    run.mkdir()
    record_models(run, begun.models)
    open_frozen_vectors(config, sources, CPU, show=False)  # nothing has changed
    weights = load_file(model / "model.safetensors")
    name = next(each for each in weights if each.endswith("word_embeddings.weight"))
    weights[name][5, 0] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"loss\.guide: .*model is not what .*run began with: weights changed since; "):
        open_frozen_vectors(config, sources, CPU, show=False)
    record_models(run, {"teacher": {**begun.models["guide"], "prompts": "others"}})
    with pytest.raises(ValueError, match=r"loss\.teacher: .* began with: weights, prompts changed since"):
        open_frozen_vectors(distilled, sources, CPU, show=False)


def test_a_run_without_a_guide_records_none(tmp_path: Path) -> None:
    record_models(tmp_path, {})
    assert not (tmp_path / FILE).exists()
