"""Whether a model computes prompts that are padded on the left as it computes them alone."""

from typing import Any, cast

import torch

from nestling.batches.packing import pad
from nestling.models.encoding import evaluating
from nestling.models.merged_weights import computing_with
from nestling.models.pooling import last_token
from nestling.models.token_model import TokenModel

LENGTHS = (19, 21, 8)  # of the prompts that are tried, in tokens
# Largest difference between states, as a fraction of their norm: rounding in float32 makes 1e-6.
TOLERANCE = 2e-5


def reads_left_padded(model: TokenModel) -> bool:
    """Whether prompts that are padded on the left, with a mask, have the states that they have alone.

    Positions count from the padding then, which no model notices whose positions are relative. Others, such as GPT-2,
    compute other states; sentence-transformers pads prompts so.
    """
    size = int(cast(Any, model.backbone).get_input_embeddings().num_embeddings)
    tokens = torch.randint(size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    prompts = [each.tolist() for each in tokens.split(LENGTHS)]
    right = pad(prompts, 0).to(model.device)
    rows = pad([ids[::-1] for ids in prompts], 0).to(model.device).input_ids.flip(1)
    mask = (torch.arange(rows.shape[1], device=model.device) < right.lengths[:, None]).flip(1).long()
    with evaluating(model), torch.no_grad(), computing_with(model):
        alone = last_token(model.hidden_states(right), right.lengths)
        left = model.transformer(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
    return bool(torch.dist(left, alone) <= TOLERANCE * alone.norm())  # false also for NaN
