"""What texts of different lengths become in one batch when padding is mistaken for text.

Shapes: B texts, L tokens of the longest, D dimensions.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from nestling.models.encoding import evaluating
from nestling.models.pooling import POOL
from nestling.retrieval.metrics import Floats
from nestling.serving.variants import Reference


def padded_variants(reference: Reference, texts: Sequence[str]) -> dict[str, Floats]:
    """[B, D] float64 of `texts` in one batch, not normalised, for each way to pad them wrongly."""
    ids = [reference.tokens(text) for text in texts]
    found = {}
    for side, masked in product(("right", "left"), (True, False)):
        states, inside = run_padded(reference, ids, side, masked)
        seen = "which it does not attend to" if masked else "which it attends to"
        found[f"pads on the {side}, {seen}, and pools as if there were none"] = pool(reference, states)
        if not masked:
            rows = [pool(reference, state[None, within]) for state, within in zip(states, inside, strict=True)]
            found[f"pads on the {side}, {seen}, and pools the text alone"] = torch.cat(rows)
    return {name: vectors.double().numpy() for name, vectors in found.items()}


def run_padded(reference: Reference, ids: list[list[int]], side: str, masked: bool) -> tuple[Tensor, Tensor]:
    """States [B, L, D], and [B, L] bool, which of them are of the text."""
    embedder, longest = reference.embedder, max(map(len, ids))
    inside = torch.tensor([[i < len(each) for i in range(longest)] for each in ids])
    inside = inside if side == "right" else inside.flip(1)
    tokens = torch.full(inside.shape, embedder.text_tokenizer.pad_id)
    tokens[inside] = torch.tensor([token for each in ids for token in each])
    mask = inside.long() if masked else torch.ones_like(tokens)
    with torch.no_grad(), evaluating(embedder):
        model = cast(Any, embedder.backbone)
        output = model(input_ids=tokens.to(embedder.device), attention_mask=mask.to(embedder.device))
    return output.last_hidden_state.float().cpu(), inside


def pool(reference: Reference, states: Tensor) -> Tensor:
    """[B, D] over all positions of [B, L, D]."""
    return POOL[reference.embedder.pooling](states, torch.full((len(states),), states.shape[1]))
