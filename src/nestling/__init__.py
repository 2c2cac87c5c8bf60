"""Nestling: contrastive fine-tuning of text embedding models and rerankers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestling.models.embedder import Embedder
    from nestling.models.reranker import Reranker

__all__ = ["Embedder", "Reranker", "__version__"]

__version__ = "0.1.0"

# Imported on first access, since they import torch, which `--help` of a recipe must not wait for.
MODELS = {"Embedder": "nestling.models.embedder", "Reranker": "nestling.models.reranker"}


def __getattr__(name: str) -> Any:
    if name not in MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODELS[name]), name)
