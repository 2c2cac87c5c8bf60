"""Synthetic queries for documents, written by a language model in two steps.

The steps are those of Qwen3 Embedding (arXiv 2506.05176, appendix): in the configuration step the model chooses a
persona, a type of query and a difficulty for a passage; in the query generation step it writes a query of this
configuration, in a length and a language that were drawn at random.
"""
