"""Damaged files of a model: one ValueError that names the file and says what to do, whoever loads them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damages
from damages import Damage
from nestling.data_checks.tokens import TokenCounter
from nestling.merging.compatibility import require_compatible
from nestling.merging.models import open_model
from nestling.merging.target import open_target
from nestling.models.adapters import load_lora
from nestling.models.checked_loading import loading
from nestling.models.embedder import Embedder, read_width
from nestling.models.reranker import Reranker
from nestling.models.weights import StoredWeights
from nestling.serving.embedder_reference import EmbedderReference
from nestling.serving.reranker_reference import RerankerReference
from tiny import tiny_qwen3
from trained import with_lora

# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Load = Callable[[Path], object]

EMBEDDERS: dict[str, Load] = {
    "embedder": Embedder.from_pretrained,
    "server check": lambda folder: EmbedderReference.load(str(folder)),
    "merge": lambda folder: open_target(str(folder), None, torch.float32),
}
RERANKERS: dict[str, Load] = {
    "reranker": Reranker.from_pretrained,
    "server check": lambda folder: RerankerReference.load(str(folder)),
    "merge": lambda folder: open_target(str(folder), None, torch.float32),
}
ADVICE = ["fetch the model again", "expected", "use a model with safetensors", "supported are", "save it again"]
OF_ALL = damages.WEIGHTS | damages.PICKLES
OF_TOKENIZER = damages.TOKENIZER | damages.TOKENIZER_SETTINGS


def damaged(model: Path, folder: Path, damage: Damage) -> Path:
    """A copy of a model with a damage."""
    copy = folder / "damaged"
    shutil.copytree(model, copy)
    damage[0](copy)
    return copy


def assert_refused(folder: Path, load: Load, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(folder)
    said = str(caught.value)
    assert message.replace("{}", str(folder)) in said
    assert "\n" not in said
    assert any(advice in said for advice in ADVICE)


@pytest.mark.parametrize("load", EMBEDDERS.values(), ids=EMBEDDERS)
@pytest.mark.parametrize("kind", [OF_ALL, OF_TOKENIZER, damages.CONFIG, damages.SHAPES, damages.EMBEDDER])
@pytest.mark.parametrize("model", ["qwen3", "bert"])
def test_embedders(
    model: str,
    kind: dict[str, Damage],
    load: Load,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, damage in kind.items():
        folder = damaged(request.getfixturevalue(model), tmp_path / name, damage)
        assert_refused(folder, load, damage[1])
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("load", RERANKERS.values(), ids=RERANKERS)
@pytest.mark.parametrize("kind", [OF_ALL, OF_TOKENIZER, damages.CONFIG, damages.SHAPES, damages.RERANKER])
def test_rerankers(kind: dict[str, Damage], load: Load, qwen3_reranker: Path, tmp_path: Path) -> None:
    for name, damage in kind.items():
        assert_refused(damaged(qwen3_reranker, tmp_path / name, damage), load, damage[1])


@pytest.mark.parametrize("kind", [OF_TOKENIZER, damages.CONFIG, damages.EMBEDDER])
def test_tokens_are_counted_without_weights(kind: dict[str, Damage], qwen3: Path, tmp_path: Path) -> None:
    for name, damage in kind.items():
        folder = damaged(qwen3, tmp_path / name, damage)
        (folder / "model.safetensors").unlink()
        assert_refused(folder, lambda folder: TokenCounter.from_pretrained(str(folder)), damage[1])


def test_the_width_is_read_from_the_configuration(qwen3: Path, tmp_path: Path) -> None:
    for name, damage in damages.CONFIG.items():
        assert_refused(damaged(qwen3, tmp_path / name, damage), read_width, damage[1])


def test_what_a_merge_compares(qwen3: Path, tmp_path: Path) -> None:
    for name, damage in {
        **damages.TOKENIZER,
        **{f"config: {name}": each for name, each in damages.CONFIG.items()},
    }.items():
        folder = damaged(qwen3, tmp_path / name, damage)
        if "architectures" not in damage[1]:
            assert_refused(folder, lambda folder: require_compatible([str(qwen3), str(folder)]), damage[1])


def test_weights_that_a_merge_reads(qwen3: Path, tmp_path: Path) -> None:
    whole = {name for name, (_, message) in damages.WEIGHTS.items() if "config.json asks for" in message}
    for name in damages.WEIGHTS.keys() - whole:
        damage = damages.WEIGHTS[name]
        folder = damaged(qwen3, tmp_path / name, damage)
        assert_refused(folder, lambda folder: open_model(str(folder)), damage[1])
        assert_refused(folder, lambda folder: StoredWeights(str(folder)), damage[1])
    for name, damage in damages.PICKLES.items():
        folder = damaged(qwen3, tmp_path / name, damage)
        assert_refused(folder, lambda folder: StoredWeights(str(folder)), damage[1])


@pytest.mark.parametrize("name", damages.ADAPTER)
def test_adapters(name: str, qwen3: Path, tmp_path: Path) -> None:
    adapted = with_lora(Embedder.from_pretrained(qwen3)).backbone
    adapted.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    damage = damages.ADAPTER[name]
    folder = damaged(tmp_path / "adapter", tmp_path, damage)
    assert_refused(folder, lambda folder: load_lora(Embedder.from_pretrained(qwen3).backbone, str(folder)), damage[1])
    assert_refused(folder, lambda folder: open_model(str(folder), str(qwen3)), damage[1])


def test_an_adapter_of_a_deeper_model(qwen3: Path, tmp_path: Path) -> None:
    deeper = with_lora(Embedder.from_pretrained(tiny_qwen3(tmp_path / "deeper", layers=3))).backbone
    deeper.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"lacks 0 tensors, and for 14 of its own .*layers.2.*; name the base that it"):
        load_lora(Embedder.from_pretrained(qwen3).backbone, str(tmp_path / "adapter"))


def test_an_adapter_without_a_base(qwen3: Path, tmp_path: Path) -> None:
    adapted = with_lora(Embedder.from_pretrained(qwen3)).backbone
    adapted.save_pretrained(str(tmp_path))  # type: ignore[operator]
    for value in (None, 3):
        damages.edit("adapter_config.json", base_model_name_or_path=value)(tmp_path)
        with pytest.raises(ValueError, match=r"adapter_config.json: base_model_name_or_path is (missing|3, expected)"):
            open_model(str(tmp_path))


def test_a_lack_of_memory_is_no_damage(qwen3: Path) -> None:
    for error in (MemoryError("too much"), torch.OutOfMemoryError("too much")):
        with pytest.raises(type(error), match="too much"), loading(qwen3, "weights"):
            raise error
