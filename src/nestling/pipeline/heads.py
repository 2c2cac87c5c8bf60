"""Whether a model can score pairs before it is trained to, by its config.json."""

import json
from pathlib import Path

HEADS = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification")


def scores_pairs(model: str) -> bool:
    """Whether a directory or hub id is a causal language model or a classifier.

    One that is neither here nor in the hub's cache, or says nothing of its classes, is taken for a reranker.
    """
    path = Path(model) / "config.json"
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache  # slow to import

        path = Path(str(try_to_load_from_cache(model, "config.json")))
    if not path.is_file():
        return True
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures")
    return not names or any(str(name).endswith(HEADS) for name in names)
