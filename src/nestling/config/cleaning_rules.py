"""The rules by which a cleaned copy leaves rows and documents out, in the order in which they apply."""

from typing import Literal

# Equal in everything to an earlier row; query or a positive among evaluation queries, or their relevant documents;
# too short; twice in a row; equal to the query; negative that is a positive of the query; like another of the row;
# query like an earlier one.
Rule = Literal[
    "repeated_rows",
    "eval_queries",
    "eval_documents",
    "short",
    "repeated_documents",
    "query_as_document",
    "contradictions",
    "near_documents",
    "near_queries",
]
# What training would drop as well, and what spoils a measurement.
DEFAULT_RULES: tuple[Rule, ...] = (
    "repeated_rows",
    "eval_queries",
    "repeated_documents",
    "query_as_document",
    "contradictions",
)
