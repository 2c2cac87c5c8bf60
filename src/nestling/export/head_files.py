"""The files of an embedder's pooling and of the modules behind it, as sentence-transformers reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nestling.export.serving_files import write_json
from nestling.models.modules import Head, numbered
from nestling.models.pooling import Pooling, modes_of
from nestling.models.pooling_file import POOLING_FLAGS


def write_head(head: Head, folder: Path) -> list[tuple[str, str]]:
    """Write each module of a head into a folder of its own in `folder`; kind and name of each, for modules.json.

    Weights are float32, whatever the type of the model's other weights: they are few.
    """
    modules = numbered(head.settings)
    for module, described in zip(head, modules, strict=True):
        if described.settings:
            write_json(folder / described.folder / "config.json", described.settings)
        tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in module.state_dict().items()}
        if tensors:
            save_file(tensors, folder / described.folder / "model.safetensors", metadata={"format": "pt"})
    return [(each.kind, each.folder) for each in modules]


def pooling_file(pooling: Pooling, width: int, *, pool_prompt: bool) -> Mapping[str, Any]:
    """The content of 1_Pooling/config.json: flags, which are concatenated in their order, or names in any other.

    Args:
        pooling: The pooling.
        width: Dimensions of a token's hidden state.
        pool_prompt: Whether it reads the tokens of prompts.
    """
    modes = modes_of(pooling)
    ordered = [mode for mode in POOLING_FLAGS.values() if mode in modes]
    settings: dict[str, Any] = {"word_embedding_dimension": width}
    if list(modes) == ordered:
        settings |= {f"pooling_mode_{flag}": mode in modes for flag, mode in POOLING_FLAGS.items()}
    else:
        settings["pooling_mode"] = ["lasttoken" if mode == "last" else mode for mode in modes]
    return settings | {"include_prompt": pool_prompt}
