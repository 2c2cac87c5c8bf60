"""Attention over packed texts, against float64."""

import random

import torch
from torch import Tensor, nn

from nestling.batches.prefix_sharing import SharedPrefixChunk, pack_groups
from nestling.models.attention import varlen_attention
from scripts.gpu.place import Place

HEADS, KEY_HEADS, WIDTH = 16, 8, 128


def check(place: Place) -> None:
    """Output and three gradients, of prompts with and without a shared beginning."""
    for shared in (True, False):
        chunk = pack_groups(prompts(place.size(90, 20)), share_prefix=shared).to(place.device)
        compare(place, chunk, "shared beginnings" if shared else "whole texts")


def prompts(longest: int) -> list[list[list[int]]]:
    """Groups of prompts of all lengths; those of a group begin alike."""
    source = random.Random(0)
    groups = []
    for _ in range(4):
        begins = source.choices(range(100), k=source.randint(20, 20 + longest))
        groups.append([[*begins, *source.choices(range(100, 200), k=source.randint(1, longest))] for _ in range(4)])
    return groups


def compare(place: Place, chunk: SharedPrefixChunk, name: str) -> None:
    torch.manual_seed(0)
    shapes = [(1, heads, chunk.positions, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    inputs = [torch.randn(shape, device=place.device, dtype=place.precision).requires_grad_() for shape in shapes]
    wide = [each.detach().double().requires_grad_() for each in inputs]
    query, key, value = inputs
    found, _ = varlen_attention(
        nn.Module(), query, key, value, None, scaling=WIDTH**-0.5, **chunk.attention_arguments()
    )
    wanted = attention(wide, may_attend(chunk))
    weight = torch.randn_like(wanted)
    gradients = torch.autograd.grad((found.double() * weight).sum(), inputs)
    expected = torch.autograd.grad((wanted * weight).sum(), wide)
    pairs = zip(("output", "queries", "keys", "values"), (found, *gradients), (wanted, *expected), strict=True)
    for what, ours, theirs in pairs:
        limit = place.size(2e-2, 1e-5)  # a bfloat16 has eight bits
        place.require(f"attention of {name}: {what}", relative_difference(ours, theirs), limit)


def may_attend(chunk: SharedPrefixChunk) -> Tensor:
    """[T, T] bool: whether a token attends to another, its own segment up to itself and all of that one's prefix."""
    lengths = chunk.cu_seqlens_q.diff().long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    prefix = torch.tensor(chunk.prefixes, device=lengths.device)[segment]
    position = torch.arange(len(segment), device=lengths.device)
    own = (segment[:, None] == segment) & (position <= position[:, None])
    return own | (prefix[:, None] == segment)


def attention(inputs: list[Tensor], allowed: Tensor) -> Tensor:
    """Attention of queries, keys and values as it is defined, [1, heads, T, d] -> [1, T, heads, d]."""
    query, key, value = (each.repeat_interleave(HEADS // each.shape[1], dim=1) for each in inputs)
    scores = (query @ key.transpose(2, 3) * WIDTH**-0.5).masked_fill(~allowed, -torch.inf)
    output: Tensor = (scores.softmax(dim=-1) @ value).transpose(1, 2)
    return output


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The L2 norm of the difference, over that of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
