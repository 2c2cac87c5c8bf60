"""The tokenizer of a model as sentence-transformers and transformers read it, with ids that the model has rows for."""

import json
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from nestling.console import say
from nestling.models.checked_loading import loading
from nestling.models.json_files import FETCH, read_object
from nestling.models.remote_code import is_trusted
from nestling.models.token_model import read_config
from nestling.models.weights import model_file

# Binary vocabularies, which transformers reads with other packages; those of tiktoken are lines of base64 and a rank.
VOCABULARIES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")


def load_tokenizer(model: str | Path, subfolder: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or hub id; notes say what of it is left out.

    transformers makes a fast one also of other files than tokenizer.json, where it has a conversion.

    Raises:
        ValueError: It is damaged, no fast one, or gives ids that the model has no embeddings of.
    """
    require_converter(str(model), subfolder)
    with loading(model, "tokenizer", subfolder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model, subfolder=subfolder, trust_remote_code=is_trusted(model)
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{model}: its {type(tokenizer).__name__} is no fast tokenizer, and transformers has no conversion of it; "
            "expected a model with a tokenizer.json"
        )
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise ValueError(f"{model}: no tokenizer.json, and no vocabulary that transformers could make one of; {FETCH}")
    if lower_cases(str(model), subfolder):
        prepend_lower_case(tokenizer.backend_tokenizer)
    leave_out_tokens_without_rows(tokenizer, read_config(model, subfolder), model)
    return tokenizer


def require_converter(model: str, subfolder: str) -> None:
    """Raise ValueError if a vocabulary needs a package to become a tokenizer, and that is not installed."""
    paths = (model_file(model, name, subfolder) for name in ("tokenizer.json", *VOCABULARIES))
    path = next((each for each in paths if each is not None), None)
    if path is None or path.name == "tokenizer.json":
        return
    with path.open("rb") as file:
        package = "tiktoken" if TIKTOKEN.match(file.read(1000)) else "sentencepiece"
    if find_spec(package) is None:
        raise ValueError(
            f"{model}: no tokenizer.json; transformers makes one of {path.name} with {package}, which is not "
            f"installed; pip install {package}"
        )


def lower_cases(model: str, subfolder: str) -> bool:
    """Whether sentence-transformers turns texts to lower case before they are tokenised."""
    return bool(read_object(model, str(PurePosixPath(subfolder) / "sentence_bert_config.json")).get("do_lower_case"))


def prepend_lower_case(backend: Tokenizer) -> None:
    """Lower case before all else, unless it is among the normalisers: as sentence-transformers 6 does."""
    own = backend.normalizer
    steps: list[Any] = list(cast(Any, own)) if isinstance(own, normalizers.Sequence) else [] if own is None else [own]
    if not any(isinstance(each, normalizers.Lowercase) for each in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def leave_out_tokens_without_rows(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, model: str | Path
) -> None:
    """Have special tokens that the model has no embeddings for read as ordinary text, and say so.

    Some models got a padding token that their embeddings were never extended for, and which no text contains.

    Raises:
        ValueError: Another token, or one that every text gets, has no embedding.
    """
    rows = getattr(config, "vocab_size", None)
    beyond = {} if rows is None else {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    special = {str(each) for each in tokenizer.added_tokens_decoder.values() if each.special}
    around = set(cast(list[int], tokenizer("a")["input_ids"]))
    for token, i in beyond.items():
        if token not in special or i in around:
            raise ValueError(
                f"{model}: its tokenizer gives {token!r} the id {i}, and the model has embeddings of ids below {rows} "
                f"only; {FETCH}, or resize its embeddings with transformers"
            )
    say(f"{model}: the model has no embedding of {', '.join(beyond)}: not used, and read as ordinary text")
    if tokenizer.pad_token in beyond:
        tokenizer.pad_token = None
    tokenizer._tokenizer = without_tokens(tokenizer.backend_tokenizer, beyond.keys())


def without_tokens(backend: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """A copy of a backend that does not know some added tokens."""
    content = json.loads(backend.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(content))
