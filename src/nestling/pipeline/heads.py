"""Whether a model can score pairs before it is trained to, by its config.json."""

import json
from pathlib import Path

HEADS = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification")


def scores_pairs(model: str) -> bool:
    """Whether a directory or hub id is a causal language model or a classifier.

    One whose config.json is neither here nor to be had from the hub, or says nothing of its classes, is taken for a
    reranker.
    """
    path = Path(model) / "config.json" if Path(model).is_dir() else of_hub(model)
    if path is None or not path.is_file():
        return True
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures")
    return not names or any(str(name).endswith(HEADS) for name in names)


def of_hub(model: str) -> Path | None:
    """config.json of a hub id, from the cache or the hub; None where neither has it."""
    from huggingface_hub import hf_hub_download  # slow to import

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (OSError, ValueError):  # no connection, no such model, or no name of one
        return None
