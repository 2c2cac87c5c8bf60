"""Queries for documents that have none, written by a language model in two steps.

In the manner of Qwen3 Embedding (arXiv 2506.05176, appendix): the model first decides who would look for a passage and
how, then writes this searcher's query in a length and a language that were drawn.
"""
