"""Whether models may be merged, by what their files say beside the weights."""

import filecmp
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nestling.export.serving_files import BaseFiles
from nestling.merging.models import model_files
from nestling.models.embedder import read_json
from nestling.models.reranker import read_settings
from nestling.models.token_model import read_config

# Keys of config.json that change nothing of what the weights compute.
BESIDE_THE_WEIGHTS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# What of tokenizer.json gives a text its ids; the rest cuts and pads, or turns ids into text.
VOCABULARY = {
    "model": "vocabulary",
    "added_tokens": "added tokens",
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
}
ENDS = {"post_processor": "tokens around a text"}

LENGTHS = frozenset({"query_max_length", "document_max_length"})

Facts = Mapping[str, object]


def require_alike(models: Sequence[str], base: str | None = None) -> None:
    """Raise ValueError, naming every difference, unless models compute and are used in the same way.

    Compared are config.json, tokenizer.json, pooling, normalisation, prompts of the same name, and what a reranker
    reads.

    Args:
        models: Directories or hub ids; of adapters and checkpoints their base's.
        base: What they were trained from; it is used in no way, and only computes and tokenises like them.
    """
    first, *others = models
    found = [line for other in others for line in differences(first, other, use=True)]
    found += differences(first, base, use=False) if base is not None else []
    if found:
        raise ValueError("\n- ".join(["these models cannot be merged:", *found]))


def differences(first: str, other: str, *, use: bool) -> list[str]:
    """Lines that name what two models do not have in common; with `use` also in how they are used."""
    ours, theirs = facts(first, use=use), facts(other, use=use)
    found = [
        f"{what} is {ours[what]!r} in {first} and {theirs[what]!r} in {other}"
        for what in ours
        if what in theirs and ours[what] != theirs[what]
    ]
    parts = VOCABULARY | (ENDS if use else {})
    return found + [f"{part} of {first} and {other} differ" for part in tokenizer_differences(first, other, parts)]


def facts(model: str, *, use: bool) -> Facts:
    """What a model's files say, by what it is about."""
    files = model_files(model)
    config = read_config(model, files.subfolder)
    known = type(config)().to_dict().keys() - BESIDE_THE_WEIGHTS  # files may hold keys that nothing reads
    values = config.to_dict()
    found: dict[str, object] = {
        f"config.json: {name}": values[name] for name in sorted(known & values.keys()) if "dropout" not in name
    }
    if not use:
        return found
    found |= {"architecture": config.architectures, "pooling": files.pooling, "normalisation": files.normalize}
    prompts = files.prompts
    found["query prompt"] = None if prompts is None else prompts.default_query
    found["document prompt"] = None if prompts is None else prompts.document
    named: dict[str, str] = (read_json(model, "config_sentence_transformers.json") or {}).get("prompts") or {}
    found |= {f"prompt {name!r}": text for name, text in named.items()}
    read: dict[str, Any] = asdict(read_settings(model))
    return found | {f"reranker.json: {name}": value for name, value in read.items() if name not in LENGTHS}


def tokenizer_differences(first: str, other: str, parts: Mapping[str, str]) -> Iterator[str]:
    """Which parts of tokenizer.json differ, by their names in `parts`."""
    paths = [BaseFiles(model, model_files(model).subfolder).path("tokenizer.json") for model in (first, other)]
    ours, theirs = paths
    if ours is None or theirs is None:
        if ours != theirs:
            yield "tokenizer.json (one has none)"
        return
    if filecmp.cmp(ours, theirs, shallow=False):
        return
    one, two = read_tokenizer(ours), read_tokenizer(theirs)
    yield from (f"tokenizer.json: {name}" for part, name in parts.items() if one[part] != two[part])


def read_tokenizer(path: Path) -> dict[str, Any]:
    """tokenizer.json as this version of the library writes it, so that versions do not look like differences."""
    content: dict[str, Any] = json.loads(Tokenizer.from_file(str(path)).to_str())
    return content
