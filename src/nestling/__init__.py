"""Nestling: contrastive fine-tuning of text embedding models and rerankers."""

__version__ = "0.1.0"
