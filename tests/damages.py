"""Ways of damaging the files of a model, each with what the error about it must say.

A damage is a function of a model's folder and a part of the expected message, in which `{}` stands for the folder.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = tuple[Callable[[Path], object], str]

WEIGHTS_FILE = "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


def cut(name: str) -> Callable[[Path], object]:
    """Half of a file."""
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Another content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, **values: Any) -> Callable[[Path], object]:
    """Other values in a JSON file; None removes a key."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def overwrite(offset: int, data: bytes) -> Callable[[Path], object]:
    """Other bytes in the weights."""

    def damage(folder: Path) -> None:
        with (folder / WEIGHTS_FILE).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def other_weights(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], object]:
    """Weights of which `change` changes one matrix of the first layer, given its name."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors, min(name for name, tensor in tensors.items() if ".0." in name and tensor.dim() == 2))
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    return damage


def in_shards(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    """Weights in two shards, of which a further damage follows."""

    def split(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        (folder / WEIGHTS_FILE).unlink()
        names = sorted(tensors)
        files = {name: SHARDS[i >= len(names) // 2] for i, name in enumerate(names)}
        for shard in SHARDS:
            save_file({name: tensors[name] for name in names if files[name] == shard}, folder / shard)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        damage(folder)

    return split


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch unpickled",)


def pickled(damage: Callable[[Path], object], **more: object) -> Callable[[Path], object]:
    """Weights in a pickle with `more` in it, of which a further damage follows."""

    def replace(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS_FILE) | more, folder / "pytorch_model.bin")
        (folder / WEIGHTS_FILE).unlink()
        damage(folder)

    return replace


def nothing(folder: Path) -> None:
    """No further damage."""


def one_factor_less(folder: Path) -> None:
    """An adapter without one of its factors."""
    factors = load_file(folder / "adapter_model.safetensors")
    del factors[min(factors)]
    save_file(factors, folder / "adapter_model.safetensors")


WEIGHTS: dict[str, Damage] = {
    "cut": (cut(WEIGHTS_FILE), "{}/model.safetensors: not a whole safetensors file"),
    "empty": (write(WEIGHTS_FILE, b""), "{}/model.safetensors: not a whole safetensors file"),
    "a pointer of git lfs": (write(WEIGHTS_FILE, "version https://git-lfs"), "{}/model.safetensors: not a whole safe"),
    "a long header": (overwrite(0, struct.pack("<Q", 2**40)), "{}/model.safetensors: not a whole safetensors file"),
    "a header of garbage": (overwrite(8, b"\xff" * 64), "{}/model.safetensors: not a whole safetensors file"),
    "one is missing": (
        other_weights(lambda tensors, name: tensors.pop(name)),
        "{}: not the weights that its config.json asks for: it lacks: ",
    ),
    "one of another shape": (
        other_weights(lambda tensors, name: tensors.update({name: tensors[name][:3].contiguous()})),
        "{}: not the weights that its config.json asks for: it has in another shape: ",
    ),
    "a shard is missing": (
        in_shards(lambda folder: (folder / SHARDS[1]).unlink()),
        "{}/model.safetensors.index.json: names model-00002-of-00002.safetensors, which is not there",
    ),
    "a shard is cut": (in_shards(cut(SHARDS[1])), "{}/model-00002-of-00002.safetensors: not a whole safetensors file"),
    "an index of nothing": (
        in_shards(write(INDEX, '{"metadata": {}, "weight_map": {"a": "none.safetensors"}}')),
        "{}/model.safetensors.index.json: names none.safetensors, which is not there",
    ),
    "an index that is a list": (
        in_shards(write(INDEX, "[1]")),
        "{}/model.safetensors.index.json: expected a JSON object, and it is a list",
    ),
    "an index with a list": (
        in_shards(write(INDEX, '{"metadata": {}, "weight_map": [1]}')),
        "{}/model.safetensors.index.json: weight_map is [1], expected an object",
    ),
    "an index without a map": (in_shards(write(INDEX, '{"metadata": {}}')), "weight_map names no files"),
    "an index that is cut": (in_shards(cut(INDEX)), "{}/model.safetensors.index.json: not valid JSON"),
    "none": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "{}: no weights; expected model.safetensors"),
}
# Of which merging says that it reads no pickles.
PICKLES: dict[str, Damage] = {
    "a pickle with code": (
        pickled(nothing, code=Code()),
        "{}/pytorch_model.bin is not loaded: it holds other things than tensors; use a model with safetensors files",
    ),
    "a pickle that is cut": (pickled(cut("pytorch_model.bin")), "{}/pytorch_model.bin is not loaded: it is damaged"),
}
TOKENIZER: dict[str, Damage] = {
    "cut": (cut("tokenizer.json"), "{}/tokenizer.json: not valid JSON"),
    "a list": (write("tokenizer.json", "[]"), "{}/tokenizer.json: expected a JSON object, and it is a list"),
    "another model": (edit("tokenizer.json", model=3), "{}: its tokenizer (tokenizer.json and tokenizer_config.json)"),
    "nothing in it": (write("tokenizer.json", "{}"), "{}: its tokenizer (tokenizer.json and tokenizer_config.json)"),
}
# What a merge, which compares tokenizer.json alone, takes no notice of before it loads the tokenizer.
TOKENIZER_SETTINGS: dict[str, Damage] = {
    "cut settings": (cut("tokenizer_config.json"), "{}/tokenizer_config.json: not valid JSON"),
    "a list of settings": (write("tokenizer_config.json", "[]"), "{}/tokenizer_config.json: expected a JSON object"),
    "a wrong class": (edit("tokenizer_config.json", tokenizer_class=3), "{}: its tokenizer (tokenizer.json and"),
    "a wrong token": (edit("tokenizer_config.json", pad_token=["a"]), "{}: its tokenizer (tokenizer.json and"),
}
CONFIG: dict[str, Damage] = {
    "cut": (cut("config.json"), "{}/config.json: not valid JSON"),
    "a list": (write("config.json", "[]"), "{}/config.json: expected a JSON object, and it is a list"),
    "no type": (edit("config.json", model_type=None), "{}: its configuration (config.json) cannot be loaded"),
    "an unknown type": (edit("config.json", model_type="none"), "{}/config.json: model_type is 'none', expected"),
    "a text as size": (edit("config.json", hidden_size="abc"), "'hidden_size' expected int, got str (value: 'abc')"),
    "no size": (edit("config.json", hidden_size=0), "{}/config.json: hidden_size is 0, expected a whole number above"),
    "negative layers": (edit("config.json", num_hidden_layers=-1), "num_hidden_layers"),
    "negative positions": (edit("config.json", max_position_embeddings=-1), "max_position_embeddings is -1, expected"),
    "a text as names": (edit("config.json", architectures="abc"), "{}/config.json: architectures is 'abc', expected"),
    "a number as names": (edit("config.json", architectures=5), "{}/config.json: architectures is 5, expected a list"),
    "an unknown dtype": (edit("config.json", torch_dtype="float17"), "{}: its configuration (config.json) cannot be"),
}
# What only shows in the weights.
SHAPES: dict[str, Damage] = {
    "more layers": (
        edit("config.json", num_hidden_layers=3),
        "{}: not the weights that its config.json asks for: it l",
    ),
    "fewer layers": (edit("config.json", num_hidden_layers=1), "asks for: it has more layers: "),
    "fewer tokens": (
        edit("config.json", vocab_size=7),
        "and the model has embeddings of ids below 7 only; fetch the model again",
    ),
    "an unknown activation": (edit("config.json", hidden_act="none"), "{}: its weights (config.json) cannot be loaded"),
}
POOLING = "1_Pooling/config.json"
EMBEDDER: dict[str, Damage] = {
    "pooling that is a list": (write(POOLING, "[]"), "{}/1_Pooling/config.json: expected a JSON object"),
    "pooling that is cut": (cut(POOLING), "{}/1_Pooling/config.json: not valid JSON"),
    "pooling that is a number": (
        edit(POOLING, pooling_mode=3),
        "{}/1_Pooling/config.json: pooling_mode is 3, expected",
    ),
    "pooling by texts": (
        edit(POOLING, pooling_mode_lasttoken="true", pooling_mode_mean_tokens="true"),
        "{}/1_Pooling/config.json: asks for no pooling; supported are cls_token, max_tokens, mean_tokens",
    ),
    "no pooling": (lambda folder: (folder / POOLING).unlink(), "{}/1_Pooling/config.json: is not there, and modules."),
    "a list of prompts": (
        edit("config_sentence_transformers.json", prompts=[1]),
        "{}/config_sentence_transformers.json: prompts is [1], expected an object",
    ),
    "a prompt that is none": (
        edit("config_sentence_transformers.json", prompts={"query": 3}),
        "{}/config_sentence_transformers.json: query is 3, expected a text",
    ),
}
RERANKER: dict[str, Damage] = {
    "settings that are a list": (write("reranker.json", "[]"), "{}/reranker.json: expected a JSON object"),
    "settings that are cut": (write("reranker.json", '{"pref'), "{}/reranker.json: not valid JSON"),
    "a prefix that is no text": (write("reranker.json", '{"prefix": 3}'), "{}/reranker.json: prefix is 3, expected a"),
    "a length that is no number": (
        write("reranker.json", '{"query_max_length": "long"}'),
        "{}/reranker.json: query_max_length is 'long', expected a whole number",
    ),
}
ADAPTER: dict[str, Damage] = {
    "cut": (cut("adapter_config.json"), "{}/adapter_config.json: not valid JSON"),
    "a list": (write("adapter_config.json", "[]"), "{}/adapter_config.json: expected a JSON object"),
    "no type": (edit("adapter_config.json", peft_type=None), "peft_type"),
    "a text as alpha": (edit("adapter_config.json", lora_alpha="x"), "{}"),
    "a wrong expression": (edit("adapter_config.json", alpha_pattern={"(": 3}), "unterminated subpattern"),
    "weights that are cut": (
        cut("adapter_model.safetensors"),
        "{}/adapter_model.safetensors: not a whole safetensors file",
    ),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "{}: no adapter_model.safetensors",
    ),
    "a factor is missing": (one_factor_less, "layers.0.mlp.down_proj"),
}
