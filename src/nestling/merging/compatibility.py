"""Whether models are compatible: whether their files other than the weights allow a merge."""

import filecmp
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nestling.batches.prompts import Prompts
from nestling.export.serving_files import BaseFiles
from nestling.merging.models import model_files
from nestling.models.checked_loading import loading
from nestling.models.embedder import ModelFiles
from nestling.models.model_prompts import read_named_prompts, read_prompts
from nestling.models.reranker_settings import read_settings
from nestling.models.token_model import is_decoder, read_config

# Keys of config.json that may differ, because what the model computes does not depend on them.
IRRELEVANT_KEYS = frozenset(
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

# Keys of tokenizer.json that decide the ids of a text, and what errors call them; the others truncate, pad or decode.
VOCABULARY = {
    "model": "vocabulary",
    "added_tokens": "added tokens",
    "normalizer": "normaliser",
    "pre_tokenizer": "pre-tokeniser",
}
# The key that decides which special tokens are added around a text.
SPECIAL_TOKENS = {"post_processor": "tokens around a text"}

# Keys of a BPE vocabulary in which null and "" mean the same.
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")

# Keys of reranker.json that may differ.
LENGTHS = frozenset({"query_max_length", "document_max_length"})


def require_compatible(models: Sequence[str], base: str | None = None) -> None:
    """Raise ValueError, naming every difference, unless models have the same architecture and are used in the same way.

    Compared are config.json, tokenizer.json, pooling, normalisation, prompts of the same name, and a reranker's
    settings.

    Args:
        models: Directories or hub ids; for an adapter or checkpoint those of its base.
        base: The model that they were trained from. Only its config.json, and what decides the ids of a text in its
            tokenizer.json, are compared: it need not be an embedder or reranker yet.
    """
    first, *others = models
    lines = [line for other in others for line in differences(first, other, with_use=True)]
    lines += differences(first, base, with_use=False) if base is not None else []
    if lines:
        raise ValueError("\n- ".join(["these models cannot be merged:", *lines]))


def differences(first: str, other: str, *, with_use: bool) -> list[str]:
    """Lines that each name a difference of two models.

    Args:
        first: Directory or hub id.
        other: Directory or hub id.
        with_use: Compare also how the models are used: architecture class, pooling, prompts, special tokens, settings.
    """
    ours, theirs = compared_values(first, with_use=with_use), compared_values(other, with_use=with_use)
    lines = [
        f"{what} is {ours[what]!r} in {first} and {theirs[what]!r} in {other}"
        for what in ours
        if what in theirs and ours[what] != theirs[what]
    ]
    parts = VOCABULARY | (SPECIAL_TOKENS if with_use else {})
    return lines + [f"{part} of {first} and {other} differ" for part in tokenizer_differences(first, other, parts)]


def compared_values(model: str, *, with_use: bool) -> Mapping[str, object]:
    """The values of a model that are compared, by what errors call them; not those of tokenizer.json."""
    files = model_files(model)
    config = read_config(model, files.subfolder)
    known = type(config)().to_dict().keys() - IRRELEVANT_KEYS  # a file may hold keys that are never read
    values = config.to_dict()
    compared: dict[str, object] = {
        f"config.json: {name}": values[name] for name in sorted(known & values.keys()) if "dropout" not in name
    }
    if not with_use:
        return compared
    return compared | {"architecture": config.architectures} | used_values(model, files, decoder=is_decoder(config))


def used_values(model: str, files: ModelFiles, *, decoder: bool) -> dict[str, object]:
    """The part of `compared_values` that says how a model is used: pooling, prompts and a reranker's settings."""
    prompts = read_prompts(model) or (None if decoder else Prompts())  # an encoder without prompts has empty ones
    compared: dict[str, object] = {
        "pooling": files.pooling,
        "normalisation": files.normalize,
        "pooling of the prompt": files.pool_prompt,
        "modules behind the pooling": [(each.kind, dict(each.settings)) for each in files.head],
        "query prompt": None if prompts is None else prompts.default_query,
        "document prompt": None if prompts is None else prompts.document,
    }
    compared |= {f"prompt {name!r}": text for name, text in read_named_prompts(model).items()}
    settings: dict[str, Any] = asdict(read_settings(model))
    return compared | {f"reranker.json: {name}": value for name, value in settings.items() if name not in LENGTHS}


def tokenizer_differences(first: str, other: str, parts: Mapping[str, str]) -> Iterator[str]:
    """The parts of tokenizer.json that differ between two models, as errors call them.

    Args:
        first: Directory or hub id.
        other: Directory or hub id.
        parts: From the keys of tokenizer.json to compare to what errors call them.
    """
    paths = [BaseFiles(model, model_files(model).subfolder).path("tokenizer.json") for model in (first, other)]
    ours, theirs = paths
    if ours is None or theirs is None:
        if ours != theirs:
            yield "tokenizer.json (one has none)"
        return
    if filecmp.cmp(ours, theirs, shallow=False):
        return
    content, other_content = read_tokenizer(ours), read_tokenizer(theirs)
    yield from (f"tokenizer.json: {name}" for part, name in parts.items() if content[part] != other_content[part])


def read_tokenizer(path: Path) -> dict[str, Any]:
    """The content of tokenizer.json in the form that the installed version of tokenizers gives it.

    Files that other versions wrote differently then compare as equal.
    """
    with loading(path.parent, "tokenizer"):
        content: dict[str, Any] = json.loads(Tokenizer.from_file(str(path)).to_str())
    model: dict[str, Any] = content["model"]
    # transformers writes "" where BPE's own files have null, and an export may have been written by it.
    model.update({name: model[name] or None for name in AFFIXES if name in model})
    return content
