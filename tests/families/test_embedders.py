"""Embedders of every architecture: the numbers of transformers and sentence-transformers, or a refusal at start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import EMBEDDERS, SAMPLE, Architecture
from family_checks import (
    TEXTS,
    accumulate,
    by_sentence_transformers,
    by_transformers,
    gradients_by_transformers,
    in_chunks,
    loaded_by_transformers,
    loaded_to_train,
    token_ids,
    train,
)
from family_models import write_embedder

from nestling.export.embedder import export_embedder
from nestling.models.embedder import Embedder

# What peft says of experts, and of GPT-2's layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys"),
    pytest.mark.filterwarnings("ignore:target_parameters="),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
]

Folder = Callable[[Architecture], Path]

# Orders of the texts.
GIVEN, REVERSED, MIXED = range(len(TEXTS)), range(len(TEXTS))[::-1], [2, 0, 3, 1]
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Writes the tiny model of an architecture, once."""
    folders: dict[str, Path] = {}

    def folder(architecture: Architecture) -> Path:
        if architecture.name not in folders:
            folders[architecture.name] = write_embedder(architecture, tmp_path_factory.mktemp("model"))
        return folders[architecture.name]

    return folder


def each_of(architectures: list[Architecture]) -> pytest.MarkDecorator:
    rows = [
        pytest.param(each, id=each.name, marks=() if each.name in SAMPLE else pytest.mark.slow)
        for each in architectures
    ]
    return pytest.mark.parametrize("architecture", rows)


@each_of([each for each in EMBEDDERS if each.refused is None])
def test_it_encodes_alone_padded_packed_and_in_any_order(architecture: Architecture, folder_of: Folder) -> None:
    folder = folder_of(architecture)
    padded, packed = (Embedder.from_pretrained(folder, attn_implementation=each) for each in ("auto", "varlen"))
    model = loaded_by_transformers(folder)
    with torch.no_grad():
        expected = by_transformers(model, token_ids(padded), architecture.pooling)
    found = {
        "alone": in_chunks(padded, 1, GIVEN),
        "padded": in_chunks(padded, 4096, GIVEN),
        "permuted": in_chunks(padded, 40, MIXED),
        "packed": in_chunks(packed, 4096, GIVEN, packed=packed.padding_free),
        "packed, reversed": in_chunks(packed, 4096, REVERSED, packed=packed.padding_free),
        "padded by varlen": in_chunks(packed, 4096, GIVEN),
        "sentence-transformers": by_sentence_transformers(folder),
    }
    for how, embeddings in found.items():
        torch.testing.assert_close(embeddings, expected, **TOLERANCE, msg=lambda text, how=how: f"{how}: {text}")
    assert (expected @ expected.T).fill_diagonal_(0).max() < 0.999, "texts must differ, or nothing is tested"
    assert packed.padding_free == architecture.packs


@each_of([each for each in EMBEDDERS if each.refused is None])
def test_all_of_it_trains_and_is_exported(architecture: Architecture, folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of(architecture)
    embedder = loaded_to_train(folder, lora=False)
    expected = gradients_by_transformers(folder, embedder, architecture.pooling)
    kept = accumulate(embedder)
    torch.testing.assert_close(kept, expected, atol=1e-5, rtol=1e-3)
    if embedder.transformer.supports_gradient_checkpointing:
        embedder.checkpoint_activations_above(0)
        torch.testing.assert_close(accumulate(embedder), expected, atol=1e-5, rtol=1e-3)
    require_export(embedder, tmp_path / "final")


@each_of([each for each in EMBEDDERS if each.refused is None and each.no_lora is None])
def test_adapters_train_and_are_exported(architecture: Architecture, folder_of: Folder, tmp_path: Path) -> None:
    require_export(loaded_to_train(folder_of(architecture), lora=True), tmp_path / "final")


def require_export(embedder: Embedder, final: Path) -> None:
    """Two steps change the embeddings, and sentence-transformers has the same from an exported directory."""
    before = in_chunks(embedder.eval(), 4096, GIVEN)
    train(embedder.train())
    embedder.eval()
    expected = in_chunks(embedder, 4096, GIVEN)
    assert (expected - before).abs().max() > 1e-3
    export_embedder(embedder, final, max_seq_length=32)  # raises what a gate finds
    torch.testing.assert_close(by_sentence_transformers(final), expected, **TOLERANCE)


@each_of([each for each in EMBEDDERS if each.refused is not None])
def test_it_is_refused_in_one_line(architecture: Architecture, folder_of: Folder) -> None:
    with pytest.raises(ValueError, match=architecture.refused) as refusal:
        loaded_to_train(folder_of(architecture), lora=False)
    assert "\n" not in str(refusal.value)


@each_of([each for each in EMBEDDERS if each.no_lora is not None])
def test_its_adapters_are_refused_before_training(architecture: Architecture, folder_of: Folder) -> None:
    with pytest.raises(ValueError, match=architecture.no_lora) as refusal:
        loaded_to_train(folder_of(architecture), lora=True)
    assert "\n" not in str(refusal.value)
