"""What stands in the place of a model and is none, or one of another kind: one line that says so and what to do."""

from collections.abc import Iterable
from pathlib import Path

from transformers import PretrainedConfig

from nestling.config.checks import require, require_model
from nestling.models.json_files import has_module, parse_object
from nestling.models.weights import model_file

ADAPTER_CONFIG = "adapter_config.json"  # what peft writes
WEIGHTS = ("*.safetensors", "*.bin")


def require_model_source(model: str | Path) -> None:
    """Raise ValueError for a path that is no model's directory; other names are taken for ids of the hub."""
    require_model(str(model), f"{model}: no such directory")
    folder = Path(model)
    if not folder.is_dir():
        return
    if (folder / ADAPTER_CONFIG).is_file():
        require_no_adapter(model)
    if any(folder.glob("*.gguf")) and not any(any(folder.glob(each)) for each in WEIGHTS):
        raise ValueError(
            f"{model}: its weights are a GGUF file, which is llama.cpp's and cannot be loaded here; expected the model "
            "that it was made from, with config.json and safetensors"
        )


def require_config_file(model: str | Path, subfolder: str = "") -> None:
    """Raise ValueError for a directory without a config.json, or without one in its transformer's folder."""
    folder = Path(model)
    require(
        not folder.is_dir() or (folder / subfolder / "config.json").is_file(),
        f"{folder / subfolder} has no config.json: {kind_of_folder(folder)}",
    )


def require_no_adapter(model: str | Path) -> None:
    """Raise ValueError for a directory or hub id that is an adapter: its base, and what makes a model of both."""
    path = model_file(str(model), ADAPTER_CONFIG)
    if path is None:
        return
    base = parse_object(path).get("base_model_name_or_path")
    raise ValueError(
        f"{model} is an adapter ({ADAPTER_CONFIG}) of {base or 'a model that it does not name'}; of an embedder, "
        f"scripts/export.py --adapter {path.parent} --base {base or 'BASE'} --output DIR makes a model of both"
    )


def kind_of_folder(folder: Path) -> str:
    """What a folder without config.json is, and what to give instead."""
    if (folder / "state.json").is_file():
        return f"it is a checkpoint; scripts/export.py --checkpoint {folder} --output DIR makes a model of it"
    if (folder / "config.yaml").is_file():
        return f"it is the folder of a run, whose model is {folder / 'final'}"
    return "expected the directory of a model"


def require_embedder(model: str | Path, config: PretrainedConfig, *, pooled: bool) -> None:
    """Raise ValueError for a reranker; `pooled` is whether the model's files name a pooling."""
    require(
        pooled or not classifies(config.architectures),
        f"{model} is a classifier or CrossEncoder ({', '.join(config.architectures or [])}); expected an embedder",
    )
    require(
        model_file(str(model), "reranker.json") is None,
        f"{model} is a reranker (reranker.json), which train/rerank.py trains; expected an embedder",
    )


def require_no_embedder(model: str | Path) -> None:
    """Raise ValueError for a model whose files name a pooling."""
    require(
        not has_module(str(model), "Pooling"),
        f"{model} is an embedder (modules.json names a Pooling), which train/embed.py trains; expected a reranker or a "
        "causal language model",
    )


def classifies(architectures: Iterable[str] | None) -> bool:
    """Whether the architecture classes of a config.json are those of a classifier, as a CrossEncoder is."""
    return any(name.endswith("ForSequenceClassification") for name in architectures or [])
