"""What sentence-transformers writes beside an adapter, and peft does not: pooling, prompts and the longest text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from nestling.batches.prompts import Prompts
from nestling.models.embedder import Embedder, ModelFiles, read_model_files, read_module_files
from nestling.models.json_files import read_modules, read_object, value_of
from nestling.models.model_prompts import read_prompts
from nestling.models.modules import ModuleSettings, load_head


@dataclass(frozen=True)
class AdapterFiles:
    """The sentence-transformers files of an adapter's folder.

    Args:
        model: Their settings, with transformer and modules in the folders of the base.
        prompts: Of queries and documents; None if they name none.
        max_seq_length: Tokens at which texts are cut; None if they do not say.
        head: The modules behind the pooling, in the adapter's own folders.
    """

    model: ModelFiles
    prompts: Prompts | None
    max_seq_length: int | None
    head: Sequence[ModuleSettings]


def read_adapter_files(adapter: str, base: str) -> AdapterFiles | None:
    """The files beside an adapter; None where there are none, as in a folder that peft wrote.

    Args:
        adapter: Its folder.
        base: Directory or hub id of the model that it was trained on.

    Raises:
        ValueError: They name other modules behind the pooling than those of the base.
    """
    if read_modules(adapter) is None:
        return None
    own, of_base = read_module_files(adapter), read_model_files(base)
    ours, theirs = ([(each.kind, dict(each.settings)) for each in files.head] for files in (own, of_base))
    if ours != theirs:
        raise ValueError(
            f"{adapter}/modules.json: behind the pooling are {ours or 'no modules'}, and {theirs or 'none'} in {base}; "
            "expected the same; sentence-transformers can merge the adapter (merge_and_unload) and save the model"
        )
    model = replace(own, subfolder=of_base.subfolder, head=of_base.head)
    return AdapterFiles(model, read_prompts(adapter), read_limit(adapter, own.subfolder), own.head)


def read_limit(adapter: str, subfolder: str) -> int | None:
    """Tokens at which texts are cut: sentence-transformers 6 writes them into the tokenizer's file alone."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = str(PurePosixPath(subfolder) / name)
        found = value_of(f"{adapter}/{file}", read_object(adapter, file), key, int)
        if found is not None:
            return found
    return None


def load_modules_beside(adapter: str, files: AdapterFiles, embedder: Embedder) -> None:
    """Load the weights of the modules behind the pooling, which were trained with the adapter."""
    embedder.head.load_state_dict(load_head(adapter, files.head).state_dict())
