"""The prompts in a model's sentence-transformers files, and those that settings put in their place."""

import re
from dataclasses import replace
from pathlib import Path

from nestling.batches.prompts import DEFAULT_INSTRUCTION, FORM, Prompts
from nestling.config.prompts import INSTRUCTION, prompt_before_text
from nestling.models.json_files import read_object, value_of

PROMPTS = "config_sentence_transformers.json"
# Names under which sentence-transformers looks for the prompt of documents, in this order.
DOCUMENT_NAMES = ("document", "passage", "corpus")
# A prompt in Qwen3-Embedding's form, or with white space at the end, as that of E5-Mistral and GTE-Qwen2.
INSTRUCTED = re.compile(r"Instruct: .*\nQuery:(\s*)", re.DOTALL)


def choose_prompts(
    model: str | Path,
    *,
    decoder: bool,
    instruction: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
) -> Prompts:
    """The prompts of a directory or hub id, with the settings that replace them.

    Args:
        model: Directory or hub id.
        decoder: Whether it is one: without prompts in its files it gets the default instruction.
        instruction: Default instruction of queries, which replaces the model's own query prompt.
        query_prompt: Literal prompt of queries; `{instruction}` in it stands for a query's instruction.
        document_prompt: Literal prompt of documents.

    Raises:
        ValueError: A file is damaged, or a setting is no prompt.
    """
    form = own_form(str(model)) if query_prompt is None else prompt_before_text("query_prompt", query_prompt)
    own = read_prompts(str(model))
    prompts = Prompts(form=form) if own is None else replace(own, form=form)
    if own is None and decoder and instruction is None:
        instruction = DEFAULT_INSTRUCTION
    if instruction is not None or INSTRUCTION not in form:
        prompts = replace(prompts, default_query=form.replace(INSTRUCTION, instruction or ""))
    if document_prompt is not None:
        prompts = replace(prompts, document=prompt_before_text("document_prompt", document_prompt))
    return prompts


def own_form(model: str) -> str:
    """The form of a model's prompts with instructions: of queries, else the first; by default Qwen3-Embedding's."""
    prompts = read_named_prompts(model)
    found = [INSTRUCTED.fullmatch(each) for each in (prompts.get("query", ""), *prompts.values())]
    return next((FORM + each[1] for each in found if each is not None), FORM)


def read_prompts(model: str) -> Prompts | None:
    """Query and document prompts in config_sentence_transformers.json, also empty ones; None if it has none."""
    prompts = read_named_prompts(model)
    default = prompts.get(str(read_object(model, PROMPTS).get("default_prompt_name")))
    query = prompts.get("query", default)
    document = next((prompts[name] for name in DOCUMENT_NAMES if name in prompts), default)
    return None if query is None and document is None else Prompts(query or "", document or "")


def read_named_prompts(model: str) -> dict[str, str]:
    """The prompts in config_sentence_transformers.json by their names, without those that are null."""
    file = f"{model}/{PROMPTS}"
    prompts = value_of(file, read_object(model, PROMPTS), "prompts", dict) or {}
    found = {name: value_of(file, prompts, name, str) for name in prompts}
    return {name: text for name, text in found.items() if text is not None}
