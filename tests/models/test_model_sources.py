"""What is given in the place of a model and is none, or is one of another kind: refused before any weights load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nestling.mining.judge import open_judge
from nestling.models.embedder import Embedder
from nestling.models.reranker import Reranker
from nestling.training.exportable import require_exportable
from tiny import tiny_qwen3
from trained import with_lora
from training.test_exportable import embed_config, rerank_config

Load = Callable[[Path], object]


def judge(model: Path) -> object:
    return open_judge(str(model), precision=torch.float32, device=torch.device("cpu"))


EMBEDDERS: list[Load] = [Embedder.from_pretrained, lambda model: require_exportable(embed_config(model, model.parent))]
RERANKERS: list[Load] = [
    Reranker.from_pretrained,
    lambda model: require_exportable(rerank_config(model, model.parent)),
    judge,
]
# peft 0.21 reads a name that transformers 5.2x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def refused(loads: list[Load], model: Path, message: str) -> None:
    for load in loads:
        with pytest.raises(ValueError, match=r".") as found:
            load(model)
        assert str(found.value).startswith(message.replace("{}", str(model)))
        assert "\n" not in str(found.value)


def without_weights(model: Path, folder: Path) -> Path:
    """A copy whose weights would be another error."""
    copied = Path(shutil.copytree(model, folder / "model"))
    (copied / "model.safetensors").write_bytes(b"")
    return copied


def write(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            write("model-Q4_K_M.gguf", "GGUF"),
            "{}: its weights are a GGUF file, which is llama.cpp's and cannot be",
        ),
        (lambda folder: None, "{} has no config.json: expected the directory of a model"),
        (
            write("state.json", "{}"),
            "{} has no config.json: it is a checkpoint; scripts/export.py --checkpoint {} --output DIR makes a",
        ),
        (write("config.yaml", "a: 1"), "{} has no config.json: it is the folder of a run, whose model is {}/final"),
        (write("adapter_config.json", "{}"), "{} is an adapter (adapter_config.json) of a model that it does not name"),
    ],
)
def test_folders_that_are_no_models(fill: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    fill(folder)
    refused([*EMBEDDERS, *RERANKERS], folder, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "{} is a GGUF file, which is llama.cpp's and cannot be loaded here; expected the directory of"),
        ("model.safetensors", "{} is a file; expected the directory of a model"),
        ("nowhere", "{}: no such directory"),
        ("an/id/of/four", "{}: no such directory"),
    ],
)
def test_paths_that_are_no_folders(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    refused([*EMBEDDERS, *RERANKERS], tmp_path / name, message)


def test_ids_of_the_hub_and_paths_that_look_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    refused([*EMBEDDERS, *RERANKERS], Path("models/mine"), "models/mine: no such directory")
    message = "model owner/name: not a directory with a config.json, and no id that the hub or its cache has: We"
    refused([*EMBEDDERS, *RERANKERS], Path("owner/name"), message)


def test_an_adapter_in_the_place_of_a_model(qwen3: Path, qwen3_base: Path, tmp_path: Path) -> None:
    """Also beside the weights of a model, where transformers would load it onto these."""
    adapted = with_lora(Embedder.from_pretrained(qwen3)).backbone
    adapted.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    message = (
        f"{{}} is an adapter (adapter_config.json) of {qwen3}; of an embedder, scripts/export.py --adapter {{}} "
        f"--base {qwen3} --output DIR makes a model of both"
    )
    refused([*EMBEDDERS, *RERANKERS], tmp_path / "adapter", message)
    beside = Path(shutil.copytree(qwen3_base, tmp_path / "beside"))
    shutil.copyfile(tmp_path / "adapter" / "adapter_config.json", beside / "adapter_config.json")
    refused([*EMBEDDERS, *RERANKERS], beside, message)


def test_an_adapter_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--adapter"
    (repository / "snapshots" / "1").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    (repository / "snapshots" / "1" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    message = (
        "owner/adapter is an adapter (adapter_config.json) of owner/base; of an embedder, scripts/export.py --adapter "
        f"{repository / 'snapshots' / '1'} --base owner/base --output DIR makes a model of both"
    )
    refused([*EMBEDDERS, *RERANKERS], Path("owner/adapter"), message)


def test_a_reranker_in_the_place_of_an_embedder(qwen3_reranker: Path, bert: Path, tmp_path: Path) -> None:
    message = "{} is a reranker (reranker.json), which train/rerank.py trains; expected an embedder"
    refused(EMBEDDERS, without_weights(qwen3_reranker, tmp_path), message)
    classifier = without_weights(bert, tmp_path / "other")
    settings = json.loads((bert / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (classifier / "config.json").write_text(json.dumps(settings))
    require_exportable(embed_config(classifier, tmp_path))  # for its files name a pooling
    (classifier / "modules.json").unlink()
    message = "{} is a classifier or CrossEncoder (BertForSequenceClassification); expected an embedder"
    refused(EMBEDDERS, classifier, message)


def test_an_embedder_in_the_place_of_a_reranker(qwen3: Path, bert: Path, tmp_path: Path) -> None:
    message = "{} is an embedder (modules.json names a Pooling), which train/embed.py trains; expected a reranker or a"
    refused(RERANKERS, without_weights(qwen3, tmp_path / "decoder"), message)
    encoder = without_weights(bert, tmp_path / "encoder")
    refused([judge], encoder, message)
    (encoder / "modules.json").unlink()
    refused([judge], encoder, "--judge {}: BertModel gives pairs no scores; expected a reranker or a CrossEncoder")
    message = "{}: bert without a head that scores pairs; expected a reranker, which train/rerank.py makes of it"
    refused(RERANKERS[:1], encoder, message)


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            "{}: loading its weights takes a package that is not ",
        ),
        (
            {"quant_method": "own"},
            "{}/config.json: its weights are quantised by 'own', which transformers does not",
        ),
    ],
)
def test_quantised_without_its_library(quantisation: dict[str, object], message: str, tmp_path: Path) -> None:
    model = tiny_qwen3(tmp_path / "model", sentence_transformers=False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    refused([Embedder.from_pretrained, Reranker.from_pretrained, judge], model, message)
