"""What a reranker reads and how much of it, as in the file reranker.json beside those that transformers reads."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from transformers import PretrainedConfig

from nestling.batches.encoder_pairs import before_query
from nestling.batches.pair_prompts import RerankPrompt
from nestling.models.json_files import parse_object, read_object, value_of
from nestling.models.token_model import is_decoder, read_config
from nestling.models.weights import model_file

SETTINGS = "reranker.json"
# Names of what sentence-transformers applies to the output of a model of one label, and its own default.
ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "none"}


@dataclass(frozen=True)
class RerankerSettings:
    """The prompt format and length limits that a causal reranker was trained with.

    Args:
        prefix: Text of the prompt before instruction, query and document.
        suffix: Text of the prompt after them, up to the answer.
        instruction: Default instruction of queries.
        yes: The answer for a relevant document.
        no: The answer for any other document.
        query_max_length: Tokens of a query, at most.
        document_max_length: Tokens of a document, at most.
    """

    prefix: str = RerankPrompt.prefix
    suffix: str = RerankPrompt.suffix
    instruction: str = RerankPrompt.instruction
    yes: str = "yes"
    no: str = "no"
    query_max_length: int = 512
    document_max_length: int = 512

    @property
    def prompt(self) -> RerankPrompt:
        return RerankPrompt(self.prefix, self.suffix, self.instruction)

    def to_json(self) -> str:
        return to_json(self)


@dataclass(frozen=True)
class EncoderSettings:
    """What the pairs of an encoder are made of, and what its scores are.

    Args:
        instruction: Default instruction of queries, written before them; empty for a model that reads none.
        activation: What makes a score of a logit: sigmoid, or none.
        query_max_length: Tokens of a query, at most.
        document_max_length: Tokens of a document, at most; fewer where the pair would be longer than the model reads.
    """

    instruction: str = ""
    activation: str = "sigmoid"
    query_max_length: int = 512
    document_max_length: int = 512

    @property
    def before_query(self) -> str:
        """What is written before a query that has no instruction of its own."""
        return before_query(self.instruction)

    def to_json(self) -> str:
        return to_json(self)


AnySettings = RerankerSettings | EncoderSettings
Kind = TypeVar("Kind", RerankerSettings, EncoderSettings)


def to_json(settings: AnySettings) -> str:
    return json.dumps(asdict(settings), indent=2, ensure_ascii=False) + "\n"


def read_settings(model: str | Path) -> AnySettings:
    """The settings of a directory or hub id, of the kind that its config.json makes it."""
    config = read_config(model)
    return read_causal_settings(model) if is_decoder(config) else read_encoder_settings(model, config)


def read_causal_settings(model: str | Path) -> RerankerSettings:
    """The settings of a causal reranker; those of Qwen3-Reranker if it has none."""
    return RerankerSettings(**stored_settings(model, RerankerSettings))


def read_encoder_settings(model: str | Path, config: PretrainedConfig) -> EncoderSettings:
    """The settings of an encoder; without a file of its own, lengths as long as it reads and its CrossEncoder's."""
    return EncoderSettings(**({"activation": read_activation(model, config)} | stored_settings(model, EncoderSettings)))


def read_activation(model: str | Path, config: PretrainedConfig) -> str:
    """What sentence-transformers applies to a logit, by what it looks at, in its order.

    Raises:
        ValueError: It is neither the sigmoid nor nothing.
    """
    beside = read_object(str(model), "config_sentence_transformers.json").get("activation_fn")
    own = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    older = getattr(config, "sbert_ce_default_activation_function", None)
    name = str(beside or own or older or "Sigmoid")
    if name.rpartition(".")[2] not in ACTIVATIONS:
        raise ValueError(f"{model}: its scores are {name} of its logits; expected Sigmoid or Identity of torch.nn")
    return ACTIVATIONS[name.rpartition(".")[2]]


def stored_settings(model: str | Path, kind: type[Kind]) -> dict[str, Any]:
    """What reranker.json says; nothing if there is no such file.

    Raises:
        ValueError: It names settings that this kind of reranker does not have, or has values of other types.
    """
    path = model_file(str(model), SETTINGS)
    if path is None:
        return {}
    found = parse_object(path)
    kinds: dict[str, type[Any]] = {each.name: type(each.default) for each in fields(kind)}
    unknown = sorted(found.keys() - kinds.keys())
    if unknown:
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; a newer Nestling may have written the file")
    values = {name: value_of(path, found, name, kinds[name]) for name in found}
    return {name: value for name, value in values.items() if value is not None}
