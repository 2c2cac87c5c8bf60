"""What every exported directory holds, and how it comes to be: whole or not at all.

The formats and the traps behind each line here: docs/serving.md.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from nestling.console import say, working
from nestling.disk_errors import ADVICE, WriteError, named, write_error
from nestling.files import sync
from nestling.locks import claim
from nestling.models.json_files import parse_object
from nestling.models.remote_code import code_files, is_trusted, local_references, trust_copy
from nestling.models.weights import model_file

# Types of published weights.
WRITTEN_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}

# Files of slow tokenizers and templates, which some stacks still read; transformers 5 does not save them.
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class BaseFiles:
    """The files of the model that was trained.

    Args:
        source: Its directory or hub id.
        subfolder: Where its transformer lies inside.
    """

    source: str
    subfolder: str = ""

    def path(self, name: str, *, root: bool = False) -> Path | None:
        """A file beside its transformer, or at its root; None where it has none."""
        return model_file(self.source, name, "" if root else self.subfolder)

    def json(self, name: str, *, root: bool = False) -> dict[str, Any]:
        """The object in a JSON file, likewise; an empty one where there is no file."""
        path = self.path(name, root=root)
        return {} if path is None else parse_object(path)

    def own_path(self, name: str) -> Path | None:
        """A file beside its transformer that may be copied; None also for a link to a file outside the model.

        What such a link leads to, a private file perhaps, is not the model's to publish. In the hub's cache all files
        are links, to the blobs of their repository.
        """
        path = self.path(name)
        if path is None:
            return None
        parents = path.absolute().parents
        home = next((each for each in parents if each.name.startswith("models--")), Path(self.source))
        if path.resolve().is_relative_to(home.resolve()):
            return path
        say(f"{path} is a link to a file outside the model and is not exported; to keep it, copy the file there")
        return None


@contextmanager
def new_directory(output_dir: Path) -> Iterator[Path]:
    """A folder beside `output_dir` to write into.

    At the end it is forced onto the disk and renamed; after an error it is gone.

    Raises:
        ValueError: `output_dir` exists, or another process writes it.
        WriteError: It could not be written.
    """
    with named(output_dir), claim(output_dir) as partial:
        refuse_existing(output_dir)
        partial.mkdir()
        try:
            yield partial
        except WriteError as error:  # of a file in the partial folder, of which nobody knows the name
            raise write_error(output_dir, int(error.errno or errno.ENOSPC)) from error
        with working(f"forcing {output_dir} onto the disk"):
            _move_into_place(partial, output_dir)


def _move_into_place(folder: Path, output_dir: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)
    refuse_existing(output_dir)
    folder.rename(output_dir)
    sync(output_dir.parent)


def refuse_existing(output_dir: Path) -> None:
    """Raise ValueError if `output_dir` exists, or its parent does not."""
    if output_dir.exists():
        raise ValueError(f"{output_dir} exists already; name a new folder, or remove it first")
    if not output_dir.parent.is_dir():
        raise ValueError(f"{output_dir.parent} is not a folder; create it first")


def require_space(folder: Path, needed: int) -> None:
    """Raise WriteError unless the disk has room for the weights and a little more."""
    free = shutil.disk_usage(folder).free
    if free < 1.02 * needed + 64e6:
        raise WriteError(
            errno.ENOSPC,
            f"cannot write into {folder}: {free / 1e9:.2f} GB are free, and the export needs {needed / 1e9:.2f} GB and "
            f"a little more; {ADVICE[errno.ENOSPC]}",
        )


def model_config(base: BaseFiles, model: PretrainedConfig, dtype: torch.dtype | None) -> dict[str, Any]:
    """config.json: the base's own file, with the keys that either major version of transformers reads.

    Args:
        base: Its files.
        model: The configuration as transformers read it.
        dtype: Of the written weights; the base's own by default.
    """
    config = base.json("config.json")
    drop_code(config, base)
    name = str(written_dtype(base, dtype)).removeprefix("torch.")
    return config | {"dtype": name, "torch_dtype": name} | rope_keys(model.to_dict().get("rope_parameters"))


def written_dtype(base: BaseFiles, dtype: torch.dtype | None) -> torch.dtype:
    """Of the weights in an export: `dtype`, or that in the config.json of the base.

    Raises:
        ValueError: There is no config.json, it names another type, or its weights are quantised.
    """
    config = base.json("config.json")
    if not config:
        raise ValueError(f"{base.source}: no config.json")
    if "quantization_config" in config:
        raise ValueError(
            f"{base.source}: its weights are quantised, into which nothing can be merged; take the model that it was "
            "made from (tuning: qlora holds that in 4 bits)"
        )
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype is None and name not in WRITTEN_DTYPES:
        raise ValueError(
            f"{base.source}/config.json: its dtype is {name!r}, expected {', '.join(WRITTEN_DTYPES)}; set export_dtype "
            "of a recipe, or dtype of scripts/export.py and scripts/merge.py"
        )
    return dtype or WRITTEN_DTYPES[name]


def drop_code(config: dict[str, Any], base: BaseFiles) -> None:
    """Remove the names of classes in Python files of the base, which are neither run nor exported unless trusted."""
    if "auto_map" in config and is_trusted(base.source):
        config["auto_map"] = local_references(config)
        return
    named = [key for key in ("auto_map", "custom_pipelines") if config.pop(key, None) is not None]
    if named:
        say(
            f"{base.source}: {' and '.join(named)} left out: the base's own code is not exported, transformers' is used"
        )


def copy_code(base: BaseFiles, folder: Path) -> None:
    """The Python files of a base whose code is trusted, byte for byte; the copy is trusted as well."""
    if is_trusted(base.source):
        for name, path in code_files(base.source, base.subfolder).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        trust_copy(folder, base.source)


def rope_keys(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """rope_parameters for transformers 5, rope_theta and rope_scaling for 4, which takes 10000 for a theta it misses.

    Models with one setting a layer type keep the keys of their own file.
    """
    if not parameters or "rope_theta" not in parameters:
        return {}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    scaled = scaling.get("rope_type", "default") != "default"
    return {
        "rope_parameters": dict(parameters),
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": scaling if scaled else None,
    }


def copy_tokenizer_files(base: BaseFiles, folder: Path) -> None:
    """The files of slow tokenizers and templates, byte for byte."""
    for name in TOKENIZER_FILES:
        path = base.own_path(name)
        if path is not None:
            shutil.copyfile(path, folder / name)


def tokenizer_config(base: BaseFiles) -> dict[str, Any]:
    """tokenizer_config.json of the base, readable by transformers 4 and unable to drop an end token in 5."""
    config = base.json("tokenizer_config.json")
    drop_code(config, base)
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 5 writes the list under this name, 4 crashes on it
        del config["extra_special_tokens"]
        config["additional_special_tokens"] = extra
    if is_qwen2(config):
        # Some releases rebuild the post-processor from these, without the end token; Qwen2's has no use for them.
        config.pop("add_bos_token", None)
        config.pop("add_eos_token", None)
    return config


def is_qwen2(config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json is of the tokenizer of Qwen2 and Qwen3."""
    return str(config.get("tokenizer_class", "")).startswith("Qwen2")


def padding_token(tokenizer: PreTrainedTokenizerBase, source: str, end: str | None = None) -> str:
    """The tokenizer's own; else, with a note, the end token that was added to it, its own, or that of unknown words.

    Embeddings are never added. Raises ValueError where it has none of these.
    """
    if tokenizer.pad_token is not None:
        return str(tokenizer.pad_token)
    token = end or tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise ValueError(f"{source}: the tokenizer has neither a pad_token nor an eos_token; give it one")
    say(f"{source}: the tokenizer has no pad_token; the export pads with its {token}")
    return str(token)


def write_adapter(backbone: nn.Module, folder: Path) -> None:
    """The LoRA adapter, if there is one, in adapter/, loadable by peft onto the base."""
    if isinstance(backbone, PeftModel):
        # "auto" would ask the hub whether the vocabulary has grown
        backbone.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)


def write_json(path: Path, content: object) -> None:
    """Write JSON as the hub's libraries do."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
