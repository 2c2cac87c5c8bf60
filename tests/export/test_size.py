"""What matters for large models: that an export makes no copies of the weights, and weights in several files."""

import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from allocations import Allocations
from nestling.config.merge_methods import Recipe, equal_weights
from nestling.export.embedder import export_embedder
from nestling.export.gate import in_stored_type
from nestling.export.reranker import export_reranker
from nestling.merging.inputs import Inputs
from nestling.merging.merge import merge_into
from nestling.merging.models import open_model
from nestling.models.adapter_merging import without_adapters
from nestling.models.embedder import Embedder
from nestling.models.merged_weights import MergedWeights
from nestling.models.reranker import Reranker
from nestling.models.reranker_settings import RerankerSettings
from nestling.models.safetensors_writer import Spec
from nestling.models.weights import StoredWeights, write_weights
from tiny import tiny_qwen3
from trained import with_lora, with_noise

SETTINGS = RerankerSettings("", "<|im_end|>", "match", query_max_length=8, document_max_length=8)


class OneAtATime(Mapping[str, Tensor]):
    """Fails when a tensor is accessed while the one before it still exists."""

    def __init__(self) -> None:
        self._last: weakref.ref[Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        assert self._last is None or self._last() is None
        tensor = torch.full((10, 10), float(name))
        self._last = weakref.ref(tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return map(str, range(5))

    def __len__(self) -> int:
        return 5


def test_weights_are_written_one_at_a_time(tmp_path: Path) -> None:
    write_weights(OneAtATime(), tmp_path, specs={str(i): Spec((10, 10), torch.float32) for i in range(5)})
    assert {name: tensor[9, 9].item() for name, tensor in StoredWeights(str(tmp_path)).items()} == {
        str(i): float(i) for i in range(5)
    }


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_an_export_makes_no_table_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, kind: str
) -> None:
    for name in ("models.replaced_weights.PIECE", "models.rounded_weights.BLOCK", "export.gate.BLOCK"):
        monkeypatch.setattr(f"nestling.{name}", 4096)
    base = tiny_qwen3(tmp_path / "base", dtype=torch.bfloat16, sentence_transformers=kind == "embedder")
    dtype, train = ("auto", with_lora) if tuning == "lora" else (torch.float32, with_noise)
    model: Embedder | Reranker
    if kind == "embedder":
        model = train(Embedder.from_pretrained(base, dtype=dtype, precision=torch.bfloat16))
        export = partial(export_embedder, model, max_seq_length=24)
    else:
        model = train(Reranker.from_pretrained(base, dtype=dtype, precision=torch.bfloat16, settings=SETTINGS))
        export = partial(export_reranker, model)
    table = without_adapters(model.backbone).get_input_embeddings().weight
    with Allocations() as made:
        export(tmp_path / "final")
    assert (torch.bfloat16, table.numel()) in made.found or tuning == "lora"
    assert (torch.float32, table.numel()) not in made.found


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("embedder", "reranker"):
        monkeypatch.setattr(f"nestling.export.{kind}.write_weights", partial(write_weights, shard_bytes=60_000))


@pytest.mark.usefixtures("small_files")
def test_an_embedder_in_several_files(tmp_path: Path) -> None:
    """From a base in several files to exports in several files, which pass the gate, load, and are merged."""
    base = in_several_files(tiny_qwen3(tmp_path / "base"))
    finals = [tmp_path / f"final-{i}" for i in range(2)]
    for i, final in enumerate(finals):
        embedder = with_lora(Embedder.from_pretrained(base), seed=i)
        report = export_embedder(embedder, final, max_seq_length=32)
        assert report.changes.changed
        assert len(list(final.glob("model-*-of-*.safetensors"))) > 1
    merged = Embedder.from_pretrained(base)
    merge_into(
        Inputs.of([open_model(str(each)) for each in finals]), Recipe("linear", equal_weights(2)), merged.backbone
    )
    export_embedder(merged, tmp_path / "merged", max_seq_length=32)
    one, two, mean = (
        dict(MergedWeights(Embedder.from_pretrained(each).backbone)) for each in (*finals, tmp_path / "merged")
    )
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("shape", ["causal", "classifier"])
def test_a_reranker_in_several_files(tmp_path: Path, shape: str) -> None:
    base = in_several_files(tiny_qwen3(tmp_path / "base", sentence_transformers=False))
    reranker = with_lora(Reranker.from_pretrained(base, settings=SETTINGS))
    report = export_reranker(reranker, tmp_path / "final", shape=shape)  # type: ignore[arg-type]
    assert report.changes.changed
    assert len(list((tmp_path / "final").glob("model-*-of-*.safetensors"))) > 1


def in_several_files(folder: Path) -> Path:
    """The same model with its weights in several files."""
    weights = dict(StoredWeights(str(folder)))
    (folder / "model.safetensors").unlink()
    write_weights(weights, folder, shard_bytes=60_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


def test_a_model_whose_buffers_would_be_rounded_is_loaded_in_float32() -> None:
    class Scaled(nn.Module):
        def __init__(self, dtype: torch.dtype | str) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(25.3, dtype=torch.bfloat16 if dtype == "auto" else dtype))

    class Plain(Scaled):
        def __init__(self, dtype: torch.dtype | str) -> None:
            super().__init__(torch.float32)
            self.loaded_as = dtype

    assert in_stored_type(Scaled).scale.dtype == torch.float32
    assert in_stored_type(Plain).loaded_as == "auto"
