"""The step that serves the latest models and compares what they answer with their evaluations."""

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config import EvaluateConfig, ServeEvalConfig, details_path, require
from nestling.pipeline.step import Step

if TYPE_CHECKING:
    from nestling.pipeline.plan import Plan


def serve_step(plan: "Plan", section: Mapping[str, Any]) -> Step:
    """The step of a section; what it does not say of how to measure is as in the section `evaluate`.

    Raises:
        ValueError: It names no url, or one of a model that is not there.
    """
    embedder, reranker = plan.latest.embedder, plan.latest.reranker
    models = {"{embedder}": embedder, "{reranker}": reranker}
    section = {key: named(value, models) for key, value in section.items()}
    url, rerank_url = section.get("url"), section.get("rerank_url")
    require(
        bool(url or rerank_url),
        "serve: give the url of a server of the embedder, the rerank_url of the reranker, or both",
    )
    require(not url or embedder is not None, "serve: url is of an embedder, and there is none")
    require(not rerank_url or reranker is not None, "serve: rerank_url is of a reranker, and there is none")
    output = plan.step_folder("serve") / "served.json"
    given = {
        "data": plan.test_sets,
        "split": plan.config.test_split,
        **({"model": embedder} if url else {"first_stage": "bm25"}),
        **(plan.weight(embedder if url else None, reranker) if rerank_url else {}),
        "expected": list(map(str, evaluations(plan, url, rerank_url))),
        "output": output,
        "details": True,
    }
    measured = {**as_evaluated(plan.config.evaluate or {}, embedder=bool(url)), **section}
    step = plan.step("serve", ServeEvalConfig, given, section=measured, writes=[output, details_path(output)])
    return replace(step, reads=(*step.reads, *([Path(str(reranker))] if rerank_url else [])))


def as_evaluated(section: Mapping[str, Any], *, embedder: bool) -> dict[str, Any]:
    """The settings of `evaluate` that a server is measured with too; without an embedder only the reranker's depth."""
    alike = {each.name for each in fields(ServeEvalConfig)} & {each.name for each in fields(EvaluateConfig)}
    kept = alike if embedder else {"depth"}
    return {key: value for key, value in section.items() if key in kept}


def evaluations(plan: "Plan", url: object, rerank_url: object) -> list[Path]:
    """The results of the models that are served."""
    embedder = "base" if plan.latest.embedder == plan.config.embedder_model else "embedder"
    reranker = "base-reranker" if plan.latest.reranker == plan.base_reranker else "reranker"
    both = "base-both" if (embedder, reranker) == ("base", "base-reranker") else "both"
    names = [embedder] if url else []
    if rerank_url:
        names.append(both if url else reranker)
    return [path for path in plan.results if path.stem in names]


def named(value: object, models: Mapping[str, str | None]) -> object:
    """A setting in which the places of models have their directories; ValueError for one that is not there."""
    for place, model in models.items():
        if isinstance(value, str) and place in value:
            require(model is not None, f"serve: there is no model for {place}")
            value = value.replace(place, shlex.quote(str(model)))
    return value
