"""What kind of model a directory or hub id is, by the classes that its config.json names."""

import json
from pathlib import Path

CAUSAL = ("ForCausalLM", "LMHeadModel")
CLASSIFIER = ("ForSequenceClassification",)


def scores_pairs(model: str) -> bool:
    """Whether a model is a causal language model or a classifier, which score pairs before they are trained to.

    One whose config.json is neither here nor to be had from the hub, or says nothing of its classes, is taken for one.
    """
    names = class_names(model)
    return not names or any(name.endswith((*CAUSAL, *CLASSIFIER)) for name in names)


def is_causal(model: str) -> bool:
    """Whether a model says that it is a causal language model."""
    return any(name.endswith(CAUSAL) for name in class_names(model))


def class_names(model: str) -> list[str]:
    """The classes in a model's config.json; empty if it names none or cannot be had."""
    path = Path(model) / "config.json" if Path(model).is_dir() else of_hub(model)
    if path is None or not path.is_file():
        return []
    return [str(name) for name in json.loads(path.read_text(encoding="utf-8")).get("architectures") or []]


def of_hub(model: str) -> Path | None:
    """config.json of a hub id, from the cache or the hub; None where neither has it."""
    from huggingface_hub import hf_hub_download  # slow to import

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (OSError, ValueError):  # no connection, no such model, or no name of one
        return None
