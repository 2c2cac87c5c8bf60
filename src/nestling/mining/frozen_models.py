"""What the guide and the teacher of a run are, in frozen_models.json of its folder: a resumed run has the same.

The settings name their directories, and not what is in them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import xxhash

from nestling.files import replace_text
from nestling.mining.fingerprints import add_weights
from nestling.models.embedder import Embedder
from nestling.models.json_files import parse_object

FILE = "frozen_models.json"
# Digests of the parts of a model on which its embeddings depend.
Digests = Mapping[str, str]


def digests_of(model: Embedder) -> Digests:
    """The digest of each part. None depends on the versions of libraries, which a resumed run may change."""
    weights = xxhash.xxh3_128()
    add_weights(weights, model)
    tokenizer = json.loads(model.text_tokenizer.backend.to_str())
    parts = {
        "tokenizer": [tokenizer["model"], tokenizer["normalizer"], tokenizer["pre_tokenizer"]],
        "pooling": [model.pooling, model.text_tokenizer.pool_prompt],
        "modules behind the pooling": [[each.kind, dict(each.settings)] for each in model.head.settings],
        "prompts": asdict(model.prompts),
        "length of a text": model.max_seq_length,
    }
    encoded = {name: json.dumps(part, sort_keys=True, default=str).encode() for name, part in parts.items()}
    return {"weights": weights.hexdigest()} | {name: xxhash.xxh3_128_hexdigest(each) for name, each in encoded.items()}


def require_same_model(run: Path, name: str, path: str, now: Digests) -> None:
    """Raise ValueError unless a guide or teacher, `name`, is what the run in a folder, if any, began with."""
    recorded = parse_object(run / FILE).get(name) if (run / FILE).exists() else None
    changed = [part for part in {**(recorded or {}), **now} if recorded and recorded.get(part) != now.get(part)]
    if changed:
        raise ValueError(
            f"loss.{name}: {path} is not what {run} began with: {', '.join(changed)} changed since; put it back "
            "as it was, or start a new run"
        )


def record_models(run: Path, models: Mapping[str, Digests]) -> None:
    """Write the digests of the guide and of the teacher, if there is one."""
    if models:
        replace_text(run / FILE, json.dumps(models, indent=1) + "\n")
