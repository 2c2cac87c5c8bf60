"""Whether a causal model computes packed prompts as it computes each alone: probed once when it is loaded.

What an attention of packed prompts leaves out (windows, caps, sinks, ALiBi), and layers that carry a state from token
to token, are different in each architecture: the model itself says.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nestling.batches.packing import pad
from nestling.batches.prefix_sharing import MIN_SAVED_POSITIONS, pack_groups
from nestling.models.attention import VARLEN, resolve_attention
from nestling.models.checked_loading import lacks_memory
from nestling.models.encoding import evaluating
from nestling.models.merged_weights import computing_with
from nestling.models.pooling import last_token
from nestling.models.replaced_weights import weights_replaced
from nestling.models.token_model import TokenModel

# Types of layers that the attention of packed prompts knows, windows if no prompt is longer.
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Largest difference between states of the same prompt, as a fraction of their norm: rounding in float32 makes 1e-6.
TOLERANCE = 1e-3
EXACT = 2e-5


def reads_packed(model: TokenModel, longest: int) -> bool:
    """Whether a model of padded prompts computes the same states of packed ones with the attention varlen.

    Leaves the model with that attention if it does.

    Args:
        model: A causal model with an attention that is right for padded prompts.
        longest: Tokens of the longest prompt that it will read.

    Raises:
        ValueError: It is not causal: the states of a token depend on tokens after it.
    """
    backbone, attention = cast(Any, model.backbone), model.config._attn_implementation
    prompts = probe_prompts(backbone.get_input_embeddings().num_embeddings)
    with evaluating(model), torch.no_grad(), weights_replaced(backbone):
        alone = model.hidden_states(pad(prompts, 0).to(model.device))  # [n, L, D]
        if differ(alone[0, :MIN_SAVED_POSITIONS], alone[1, :MIN_SAVED_POSITIONS]):
            raise ValueError(f"{model.source}: its attention is not causal, and a reranker reads its last token")
        if not may_pack(model, longest):
            return False
        backbone.set_attn_implementation(resolve_attention(VARLEN, torch.float32))
        same = packed_states_are(model, prompts, alone)
    if not same:
        backbone.set_attn_implementation(attention)
    return same


def probe_prompts(vocabulary: int) -> list[list[int]]:
    """Two prompts of one query, that begin with the same tokens, and one of another; random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (2 * MIN_SAVED_POSITIONS,), generator=generator).tolist()
    shared, rest = tokens[:MIN_SAVED_POSITIONS], tokens[MIN_SAVED_POSITIONS:]
    return [[*shared, *rest[:3]], [*shared, *rest[3:8]], rest[8:]]


def may_pack(model: TokenModel, longest: int) -> bool:
    """Whether a model takes the attention varlen, and its configuration names no layer for which that is wrong."""
    config = model.config
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if "sliding_attention" in layers else None
    return (
        bool(cast(Any, model.transformer)._supports_attention_backend)
        and layers <= KNOWN_LAYERS
        and (window is None or window >= longest)
    )


def packed_states_are(model: TokenModel, prompts: Sequence[list[int]], alone: Tensor) -> bool:
    """Whether the states of packed prompts, with a shared prefix, are those that they have alone, [n, L, D]."""
    chunk = pack_groups([prompts[:2], prompts[2:]], share_prefix=True).to(model.device)
    try:
        packed = model.hidden_states(chunk)[0]
    except Exception as error:  # the model's code does not take the arguments of packed prompts
        if lacks_memory(error):
            raise
        return False
    return not any(
        differ(packed[last], alone[i, length - 1])
        for i, (last, length) in enumerate(zip(chunk.last_positions, chunk.lengths, strict=True))
    )


def reads_left_padded(model: TokenModel) -> bool:
    """Whether prompts that are padded on the left, with a mask, have the states that they have alone.

    Positions count from the padding then, which no model notices whose positions are relative. Others, such as GPT-2,
    compute other states; sentence-transformers pads prompts so.
    """
    prompts = probe_prompts(cast(Any, model.backbone).get_input_embeddings().num_embeddings)
    right = pad(prompts, 0).to(model.device)
    rows = pad([ids[::-1] for ids in prompts], 0).to(model.device).input_ids.flip(1)
    mask = (torch.arange(rows.shape[1], device=model.device) < right.lengths[:, None]).flip(1).long()
    with evaluating(model), torch.no_grad(), computing_with(model):
        alone = last_token(model.hidden_states(right), right.lengths)
        left = model.transformer(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
    return not differ(left, alone, EXACT)


def differ(states: Tensor, others: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether states, [..., D], differ by more than rounding; true also for NaN."""
    return not bool(torch.dist(states, others) <= tolerance * others.norm())
