"""Settings that the steps of a pipeline take from its sections."""

from collections.abc import Mapping
from typing import Any

from nestling.config import EvaluateConfig, require
from nestling.config.arguments import itemised


def first_dim(section: Mapping[str, Any]) -> dict[str, Any]:
    """The first of the dimensions of a section, as a setting: a first stage has one; nothing without dimensions."""
    dims = itemised(EvaluateConfig, {"dims": section.get("dims", [])})["dims"]
    return {"dims": [int(each) if str(each).isdigit() else each for each in dims[:1]]} if dims else {}


def texts_of(section: Mapping[str, Any]) -> dict[str, object]:
    """The settings of a section that say what an embedder reads before a text, which a reranker does not have."""
    return {key: section[key] for key in ("query_prompt", "document_prompt") if key in section}


def data_settings(data: tuple[str, str]) -> dict[str, object]:
    """Path and split of data, as settings."""
    return {"data": data[0], "split": data[1]}


def substitute_models(value: object, latest: Mapping[str, str | None]) -> object:
    """A setting in which the values `embedder` and `reranker` are replaced by the latest models.

    Raises:
        ValueError: There is no such model before the step.
    """
    if isinstance(value, list):
        return [substitute_models(each, latest) for each in value]
    if not isinstance(value, str) or value not in latest:
        return value
    model = latest[value]
    require(model is not None, f"{value} is the latest {value}, and none is there yet; name a directory or hub id")
    return model
