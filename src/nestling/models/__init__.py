"""Embedders and rerankers on transformers: attention, pooling, adapters, encoding, scoring, weights."""
