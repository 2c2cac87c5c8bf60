"""Prompts of an embedder as settings: what stands before a query and before a document.

`{text}` or `{}` may name the place of the text, which is the end: sentence-transformers and servers put a prompt before
a text and nothing behind it. In a query's prompt `{instruction}` stands for the instruction of the query.
"""

import re
from collections.abc import Iterable

from nestling.config.checks import require

INSTRUCTION = "{instruction}"
TEXTS = ("{text}", "{}")
PLACE = re.compile(r"\{\w*\}")


def prompt_before_text(name: str, prompt: str) -> str:
    """A prompt without the place of its text.

    Args:
        name: Of the setting, for errors.
        prompt: As it is given.

    Raises:
        ValueError: It has other places, words behind the text, or a backslash and an n for a line break.
    """
    before = next((prompt.removesuffix(text) for text in TEXTS if prompt.endswith(text)), prompt)
    for place in PLACE.findall(before):
        require(
            place not in TEXTS,
            f"{name} is {prompt!r}: servers put a prompt before a text and nothing behind it; expected {place} at the "
            f"end, and {INSTRUCTION} for the query's instruction",
        )
        require(
            place == INSTRUCTION and name == "query_prompt",
            f"{name} is {prompt!r}, and {place} is unknown there; expected {{text}} for the text"
            + (f", {INSTRUCTION} for the query's instruction" if name == "query_prompt" else ""),
        )
    require(
        r"\n" not in before,
        f"{name} is {prompt!r}, with a backslash and an n; for a line break write $'…\\n…' in bash, \"…\\n…\" in YAML",
    )
    return before


def require_prompts(query: str | None, document: str | None, instructions: Iterable[str | None]) -> None:
    """Raise ValueError for prompts that cannot be, or for one of queries that leaves out an instruction.

    Args:
        query: The setting query_prompt.
        document: The setting document_prompt.
        instructions: Instructions that the settings give queries, None for none.
    """
    if document is not None:
        prompt_before_text("document_prompt", document)
    if query is None or INSTRUCTION in prompt_before_text("query_prompt", query):
        return
    left_out = next((each for each in instructions if each is not None), None)
    require(
        left_out is None,
        f"query_prompt is {query!r}, without a place for the instruction {left_out!r}; write {INSTRUCTION} where it is "
        "to stand, or leave one of the two away",
    )


def require_no_instructions(query: str | None, data: str, rows: int) -> None:
    """Raise ValueError if `rows` of the rows of a dataset have instructions, and the prompt of queries none."""
    require(
        query is None or INSTRUCTION in query or not rows,
        f"{data}: {rows:,} rows have an instruction of their own, and query_prompt is {query!r}; write {INSTRUCTION} "
        "where it is to stand, or take it out of the rows",
    )
