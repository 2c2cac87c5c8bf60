"""train/embed.py on ranks of which the last runs out of memory in the fourth step. Arguments as there."""

import torch
from launches import recipe
from torch import Tensor

from nestling.batches.packing import AnyChunk
from nestling.config import EmbedConfig, parse_config, run
from nestling.distributed.ranks import rank_and_world
from nestling.models.embedder import Embedder

RECIPE = recipe("embed")
SEED_STEP, FORWARD = RECIPE.seed_step, Embedder.forward
full = False


def seed_step(seed: int, step: int, rank: int) -> None:
    global full
    full = (step, rank + 1) == (3, rank_and_world()[1])
    SEED_STEP(seed, step, rank)


def forward(self: Embedder, chunk: AnyChunk, *, in_place: bool = False) -> Tensor:
    if full and torch.is_grad_enabled() and chunk.positions > 1:
        raise torch.OutOfMemoryError("a full device")
    return FORWARD(self, chunk, in_place=in_place)


if __name__ == "__main__":
    RECIPE.seed_step = seed_step  # type: ignore[attr-defined]
    Embedder.forward = forward  # type: ignore[method-assign]
    config = parse_config(EmbedConfig, __doc__)
    run(lambda: RECIPE.main(config))
