"""Models that can be merged, opened by `open_model`.

A model is a directory or hub id, a peft adapter on its base, or a checkpoint of a run on the run's base.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nestling.batches.prompts import Prompts
from nestling.checkpoint.atomic import MANIFEST, file_damage
from nestling.checkpoint.state import MODEL, STATE
from nestling.config.yaml_files import read_yaml
from nestling.merging.heads import JoinedTensors, with_head
from nestling.merging.lora import base_of_adapter, is_adapter_folder, is_lora_factor, open_adapter, with_lora
from nestling.merging.names import align, names_in_base, require_matching_specs
from nestling.merging.sources import RenamedTensors, ReplacedTensors, Source, open_weights, stored_tensors
from nestling.models.adapter_files import AdapterFiles, read_adapter_files
from nestling.models.embedder import ModelFiles, read_model_files
from nestling.models.json_files import has_module
from nestling.models.model_prompts import read_prompts
from nestling.models.model_sources import classifies
from nestling.models.modules import modules_beside
from nestling.models.token_model import is_decoder, read_config
from nestling.run_files import CONFIG

# Prefix of the transformer's tensors in embedders and rerankers, and so in checkpoints.
BACKBONE = "backbone."


def open_model(model: str, base: str | None = None) -> Source:
    """Open a model to merge; no tensor is read yet.

    Args:
        model: A model's directory or hub id; the folder of a peft adapter; a step-N folder of a run.
        base: The model under an adapter or checkpoint; by default the one that the adapter or the run names.

    Raises:
        ValueError: The model is not in safetensors files, is damaged, or its adapter is not plain LoRA.
    """
    if is_checkpoint(model):
        return open_checkpoint(Path(model), base)
    if is_adapter_folder(model):
        adapted = base or base_of_adapter(model)
        files = model_files(adapted)
        adapter, beside = open_adapter(model, adapted, files.subfolder), modules_beside(model, files.head)
        own = read_adapter_files(model, adapted)
        if own is not None:
            require_same_use(model, own, adapted, files)
            return with_head(adapter, model, own.head)
        return with_head(adapter, *((adapted, files.head) if beside is None else (model, beside)))
    if base is not None:
        raise ValueError(f"{model} is whole, neither an adapter nor a checkpoint, and takes no base under it")
    return open_whole(model)


def require_same_use(adapter: str, own: AdapterFiles, base: str, files: ModelFiles) -> None:
    """Raise ValueError if the files beside an adapter say that it is used in another way than its base is.

    A merge is used as its base is: these files of sentence-transformers would count for nothing.
    """
    ours = replace(own.model, head=()), own.prompts or Prompts()
    if ours != (replace(files, head=()), read_prompts(base) or Prompts()):
        raise ValueError(
            f"{adapter}: its pooling, normalisation or prompts are not those of {base}, which the merge would have; "
            f"scripts/export.py --adapter {adapter} --base {base} --output DIR makes a model of it, to merge instead"
        )


def open_whole(model: str) -> Source:
    """The weights of a directory or hub id, those of the modules behind an embedder's pooling among them."""
    files = model_files(model)
    return with_head(open_weights(model, files.subfolder), model, files.head)


def is_checkpoint(model: str) -> bool:
    """Whether a path is a step-N folder of a run."""
    return (Path(model) / STATE).is_file()


def model_files(model: str) -> ModelFiles:
    """`read_model_files`, but without pooling and prompts for a reranker that is also exported as a CrossEncoder.

    Raises:
        ValueError: The model is neither a directory nor a hub id, or has a module that Nestling does not support.
    """
    try:
        scores = has_module(model, "LogitScore")
    except OSError as error:
        raise ValueError(f"{model}: not a directory, and no hub id: {str(error).splitlines()[0]}") from error
    return ModelFiles() if scores else read_model_files(model)


def open_checkpoint(checkpoint: Path, base: str | None = None) -> Source:
    """Open a checkpoint of full or LoRA training: its tensors on the model that the run started from.

    Args:
        checkpoint: RUN/checkpoints/step-N.
        base: The model that the run started from, if it is no longer where the run's settings say.

    Raises:
        ValueError: The checkpoint is damaged, is not in a run's folder, or does not fit the base.
    """
    settings = run_settings(str(checkpoint))
    require_undamaged(checkpoint)
    source = base or settings["model"]
    base_weights, label = open_whole(source), str(checkpoint)
    stored = stored_tensors([checkpoint / MODEL], label)
    trained = RenamedTensors(stored, {name.removeprefix(BACKBONE): name for name in stored.specs})
    # peft keeps the weight of a layer that it adapts under layer.base_layer.weight.
    full = {name.replace(".base_layer.", "."): name for name in trained.specs if not is_lora_factor(name)}
    weights = RenamedTensors(trained, full)
    replaced = (
        with_new_head(label, base_weights, weights)
        if gets_head(settings, source)
        else with_replaced(label, base_weights, weights)
    )
    factors = RenamedTensors(trained, {name: name for name in trained.specs if is_lora_factor(name)})
    if not factors.specs:
        return replaced
    alpha = float(settings["lora"]["alpha"])
    return with_lora(label, replaced, factors, lambda layer, rank: alpha / rank)


def gets_head(settings: Mapping[str, Any], source: str) -> bool:
    """Whether a run makes a reranker of an encoder without a head."""
    if "answers" not in settings:  # as the settings of rerankers have
        return False
    config = read_config(source)
    return not is_decoder(config) and not classifies(config.architectures)


def with_new_head(label: str, base: Source, trained: Source) -> Source:
    """As `with_replaced`, with all that was trained and the base does not have, which is the head."""
    bare = {name.removeprefix("base_model.model."): name for name in trained.specs}
    there = align(bare.keys(), base.specs.keys()).keys()
    replaced = RenamedTensors(trained, {bare[name]: bare[name] for name in there})
    head = RenamedTensors(trained, {name: own for name, own in bare.items() if name not in there})
    return JoinedTensors(label, [with_replaced(label, base, replaced) if there else base, head])


def with_replaced(label: str, base: Source, replacements: Source) -> ReplacedTensors:
    """Replace some tensors of a base, whose names may differ from theirs by the backbone's prefix.

    Raises:
        ValueError: The base has no tensor of that name, or one of another shape.
    """
    stored_names = {name.removeprefix("base_model.model."): name for name in replacements.specs}
    base_names = names_in_base(stored_names.keys(), base.specs, label, base.label)
    for name, in_base in base_names.items():
        spec = replacements.specs[stored_names[name]]
        require_matching_specs(in_base, base.label, base.specs[in_base], label, spec)
    replaced = {in_base: stored_names[name] for name, in_base in base_names.items()}
    return ReplacedTensors(label, base, replacements, replaced)


def run_settings(checkpoint: str) -> dict[str, Any]:
    """The content of config.yaml of the run that a checkpoint belongs to."""
    path = Path(checkpoint).resolve().parents[1] / CONFIG
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {CONFIG}; expected RUN/checkpoints/step-N")
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected keys with values, as a run writes them")
    return settings


def require_undamaged(checkpoint: Path) -> None:
    """Raise ValueError unless the checkpoint's weights match their checksum; its optimizer state is not read."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        problem = next(file_damage(checkpoint, {MODEL: entries[MODEL]}), None)
    except (OSError, ValueError, KeyError) as error:
        problem = repr(error)
    if problem is not None:
        raise ValueError(f"{checkpoint} cannot be loaded: {problem}")
