"""Embeddings of texts of different lengths in one batch when padding is treated as text.

Shapes: B texts, L tokens of the longest, D dimensions.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from nestling.models.encoding import evaluating
from nestling.models.pooling import pool_padded
from nestling.retrieval.metrics import Floats
from nestling.serving.embedder_reference import EmbedderReference


def padded_variants(reference: EmbedderReference, texts: Sequence[str]) -> dict[str, Floats]:
    """Error of padding -> [B, D] float64, the embeddings of `texts` in one batch, not normalised."""
    ids = [reference.tokens(text) for text in texts]
    embeddings = {}
    for side, with_mask in product(("right", "left"), (True, False)):
        states, is_token = padded_states(reference, ids, side, with_mask)
        attention = "which it does not attend to" if with_mask else "which it attends to"
        embeddings[f"pads on the {side}, {attention}, and pools as if there were none"] = pool(reference, states)
        if not with_mask:
            rows = [pool(reference, state[None, within]) for state, within in zip(states, is_token, strict=True)]
            embeddings[f"pads on the {side}, {attention}, and pools the text alone"] = torch.cat(rows)
    return {name: vectors.double().numpy() for name, vectors in embeddings.items()}


def padded_states(
    reference: EmbedderReference, ids: list[list[int]], side: str, with_mask: bool
) -> tuple[Tensor, Tensor]:
    """Last hidden states [B, L, D], and [B, L] bool, whether a position is a token of the text."""
    embedder, longest = reference.embedder, max(map(len, ids))
    is_token = torch.tensor([[i < len(each) for i in range(longest)] for each in ids])
    is_token = is_token if side == "right" else is_token.flip(1)
    tokens = torch.full(is_token.shape, embedder.text_tokenizer.pad_id)
    tokens[is_token] = torch.tensor([token for each in ids for token in each])
    mask = is_token.long() if with_mask else torch.ones_like(tokens)
    with torch.no_grad(), evaluating(embedder):
        model = cast(Any, embedder.backbone)
        output = model(input_ids=tokens.to(embedder.device), attention_mask=mask.to(embedder.device))
    return output.last_hidden_state.float().cpu(), is_token


def pool(reference: EmbedderReference, states: Tensor) -> Tensor:
    """[B, E]: states [B, L, D] pooled over all positions, behind the head."""
    lengths = torch.full((len(states),), states.shape[1])
    return reference.through_head(pool_padded(states, lengths, reference.embedder.pooling))
