"""What a merge can take: a model directory or hub id, a peft adapter on its base, a checkpoint of a run on its base."""

import json
from pathlib import Path
from typing import Any

import yaml

from nestling.checkpoint.atomic import MANIFEST, file_damage
from nestling.checkpoint.state import MODEL, STATE
from nestling.merging.lora import adapter_folder, is_factor, open_adapter, with_lora
from nestling.merging.names import own_names, require_like
from nestling.merging.sources import Overlaid, Renamed, Source, open_weights, stored_tensors
from nestling.models.embedder import ModelFiles, read_json, read_model_files
from nestling.run_files import CONFIG

# What embedders and rerankers call their transformer.
BACKBONE = "backbone."


def open_model(model: str, base: str | None = None) -> Source:
    """A model to merge.

    Args:
        model: A model's directory or hub id; a folder that peft wrote; a step-N folder of a run.
        base: The model under an adapter or checkpoint, where it is not the one that these name.

    Raises:
        ValueError: It cannot be read in pieces, is damaged, or its adapter is not plain LoRA.
    """
    if (Path(model) / STATE).is_file():
        return open_checkpoint(Path(model), base)
    if adapter_folder(model):
        under = base or json.loads((Path(model) / "adapter_config.json").read_text())["base_model_name_or_path"]
        return open_adapter(model, under, model_files(under).subfolder)
    if base is not None:
        raise ValueError(f"{model} is whole, neither an adapter nor a checkpoint, and takes no base under it")
    return open_weights(model, model_files(model).subfolder)


def model_files(model: str) -> ModelFiles:
    """As `read_model_files`; a reranker that is a CrossEncoder as well has neither pooling nor prompts.

    Raises:
        ValueError: There is no such directory, and it cannot be a hub id; or a module that Nestling does not have.
    """
    try:
        modules = read_json(model, "modules.json") or []
    except OSError as error:
        raise ValueError(f"{model}: not a directory, and no hub id: {str(error).splitlines()[0]}") from error
    if any(each["type"].endswith(".LogitScore") for each in modules):
        return ModelFiles()
    return read_model_files(model)


def open_checkpoint(checkpoint: Path, base: str | None = None) -> Source:
    """A checkpoint of a run, RUN/checkpoints/step-N: what was trained, over the model that the run began with.

    Args:
        checkpoint: The folder.
        base: That model, where it has moved to.

    Raises:
        ValueError: The folder is damaged or not in a run's, or is not of this base.
    """
    settings = run_settings(checkpoint)
    require_sound(checkpoint)
    source = base or settings["model"]
    under, label = open_weights(source, model_files(source).subfolder), str(checkpoint)
    stored = stored_tensors([checkpoint / MODEL], label)
    trained = Renamed(stored, {name.removeprefix(BACKBONE): name for name in stored.specs})
    whole = [name for name in trained.specs if not is_factor(name)]
    changed = overlaid(label, under, Renamed(trained, {name.replace(".base_layer.", "."): name for name in whole}))
    factors = Renamed(trained, {name: name for name in trained.specs if is_factor(name)})
    if not factors.specs:
        return changed
    alpha = float(settings["lora"]["alpha"])
    return with_lora(label, changed, factors, lambda layer, rank: alpha / rank)


def overlaid(label: str, under: Source, over: Source) -> Overlaid:
    """A model some of whose tensors are replaced, by names that may lack or have the backbone's prefix.

    Raises:
        ValueError: There is no such tensor, or none of this shape.
    """
    bare = {name.removeprefix("base_model.model."): name for name in over.specs}
    names = own_names(bare.keys(), under.specs, label, under.label)
    for name, to in names.items():
        require_like(to, under.label, under.specs[to], label, over.specs[bare[name]])
    return Overlaid(label, under, over, {to: bare[name] for name, to in names.items()})


def run_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint belongs to."""
    path = checkpoint.resolve().parents[1] / CONFIG
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {CONFIG}; expected RUN/checkpoints/step-N")
    settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def require_sound(checkpoint: Path) -> None:
    """Raise ValueError unless the checkpoint's tensors are what was written; its optimizer state is not read."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        problem = next(file_damage(checkpoint, {MODEL: entries[MODEL]}), None)
    except (OSError, ValueError, KeyError) as error:
        problem = repr(error)
    if problem is not None:
        raise ValueError(f"{checkpoint} cannot be loaded: {problem}")
