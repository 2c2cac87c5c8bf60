"""Scores by transformers alone: the card prints these functions, and the gate runs them.

Shapes: n pairs of a query and a document; prompts are lists of token ids.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    prefix: str,
    suffix: str,
    instruction: str,
    max_length: int,
) -> list[list[int]]:
    start, end = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prefix, suffix))
    bodies = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    room = max_length - len(start) - len(end)  # only the body is cut
    cut = tokenizer(bodies, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
    return [start + body + end for body in cut]


@torch.no_grad()
def score_causal(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], no: int, yes: int) -> Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="right", return_tensors="pt")
    mask = batch["attention_mask"]
    rows, last = torch.arange(len(prompts)), mask.sum(dim=1) - mask.shape[1] - 1  # counted from the end
    logits: Tensor = model(**batch).logits[rows, last][:, [no, yes]]
    return logits.float().log_softmax(dim=1)


@torch.no_grad()
def score_classifier(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> Tensor:
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    logits: Tensor = model(**batch).logits[:, 0]
    return logits.float()


def pair_batch(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    instruction: str,
    max_length: int,
    **settings: Any,
) -> Any:
    queries = [f"{instruction}{query}" for query, _ in pairs]
    documents = [document for _, document in pairs]
    return tokenizer(queries, documents, truncation=True, max_length=max_length, **settings)


@torch.no_grad()
def score_pairs(model: Any, batch: Any) -> Tensor:
    logits: Tensor = model(**batch).logits[:, 0]
    return logits.float()
