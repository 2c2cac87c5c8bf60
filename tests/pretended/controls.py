"""What the pretended device sees: single operations, planted tensors of the CPU, planted and real waits."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nestling.backends import plain
from nestling.batches.packing import AnyChunk, Chunk, TokenBatch
from nestling.models import embedder
from nestling.models.token_model import TokenModel
from nestling.training.cached import CachedPasses
from nestling.training.run import Run
from pretended import device
from pretended.commands import DEVICE, trained
from train import embed

LOSS_WAITS = 4  # what the masks of negatives hold is counted, to make room for it


def waits(place: Path) -> None:
    """No chunk waits for the device, forward or backward; the loss does a few times, however many chunks there are."""
    few, many = (waits_of_step(place, f"waits-{size}", chunk_tokens=size) for size in (512, 32))
    assert many["chunks"] > 4 * few["chunks"], (few, many)
    for found in (few, many):
        assert not found["forward"] and not found["backward"], found
    assert many["loss"] == few["loss"], (few, many)
    assert 0 < sum(few["loss"].values()) <= LOSS_WAITS, few


def waits_of_step(place: Path, output: str, **more: object) -> dict[str, Any]:
    """Waits of a step's passes, of its loss, and the number of its chunks."""
    found: dict[str, Any] = {"forward": Counter(), "backward": Counter(), "loss": Counter()}
    with pytest.MonkeyPatch.context() as patch:

        def count(owner: Any, name: str, key: str) -> None:
            original = getattr(owner, name)

            def counted(*arguments: Any, **more: Any) -> Any:
                with device.counted_waits() as each:
                    result = original(*arguments, **more)
                found[key].update(each)
                return result

            patch.setattr(owner, name, counted)

        def chunks(tokens: TokenBatch, target: torch.device) -> TokenBatch:
            found["chunks"] = len(tokens.chunks)
            return to(tokens, target)

        to = TokenBatch.to
        patch.setattr(TokenBatch, "to", chunks)
        patch.setattr(Run, "export", lambda *arguments: None)
        count(CachedPasses, "forward", "forward")
        count(CachedPasses, "backward", "backward")
        count(embed, "rank_loss", "loss")
        trained(place, output, max_steps=1, **more)
    return found


def operations(place: Path) -> None:
    """Control: single operations are refused, allowed and counted as those of a GPU are."""
    there, here = torch.arange(4.0).to(DEVICE), torch.ones(4)
    refused: tuple[Callable[[], Any], ...] = (
        lambda: there + here,
        lambda: here.mul_(there),
        lambda: torch.cat([there, here]),
        lambda: torch.cat([there, torch.ones(1)]),
        lambda: here[there.long()],
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: there.gather(0, torch.tensor([1])),
        lambda: torch.nn.functional.embedding(torch.tensor([1]), there[:, None]),
        lambda: there[:1, None] @ torch.ones(1, 1),
        lambda: torch.nn.functional.linear(there, here[None]),
        lambda: there.index_put_((torch.tensor([1]),), torch.ones(1)),
        lambda: torch.equal(there, here),
        lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
        lambda: there.bernoulli_(0.5, generator=torch.Generator()),
    )
    for each in refused:
        with pytest.raises(RuntimeError, match=r"same device|for generator"):
            each()
    for number in (lambda: there.numpy(), lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="can't convert"):
            number()
    assert (there * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert there[torch.tensor([3])].item() == 3
    here[1:3] = there[1:3]
    assert here.tolist() == [1, 1, 2, 1]
    waiting: tuple[Callable[[], Any], ...] = (
        there.sum().item,
        there.cpu,
        there.tolist,
        there.nonzero,
        lambda: bool(there.any()),
        lambda: there[there > 1],
        lambda: there.masked_select(there > 1),
        lambda: torch.repeat_interleave(there.long()),
        lambda: here.to(DEVICE),
        lambda: there[torch.tensor([1, 2])],
    )
    for wait in waiting:
        with device.counted_waits() as found:
            wait()
        assert len(found) == 1, found
    with device.counted_waits() as found:
        torch.repeat_interleave(there.long(), output_size=6) + there.max() + torch.arange(6, device=DEVICE)
    assert not found


def planted_wait(place: Path) -> None:
    """Control: a number that each chunk reads is counted, in both passes."""
    with pytest.MonkeyPatch.context() as patch:
        original = TokenModel.hidden_states

        def reading(self: TokenModel, chunk: AnyChunk, **more: Any) -> Tensor:
            assert int(chunk.lengths.max()) > 0
            return original(self, chunk, **more)

        patch.setattr(TokenModel, "hidden_states", reading)
        found = waits_of_step(place, "planted-wait", chunk_tokens=128, activation_memory=0)
    for each in ("forward", "backward"):
        assert found[each].total() == found["chunks"], found


def planted_mixes(place: Path) -> None:
    """Controls: tensors that a step makes on the CPU, in its batch, its model, its loss and its update."""
    chunk_to, pool, info_nce = Chunk.to, embedder.pool_padded, embed.info_nce
    clip = plain.clip_gradients

    def leave_ids(self: Chunk, target: torch.device) -> Chunk:
        return replace(chunk_to(self, target), input_ids=self.input_ids)

    def mask_of_cpu(hidden: Tensor, *arguments: Any) -> Tensor:
        return pool(hidden * torch.ones(hidden.shape[1])[:, None], *arguments)

    def weight_of_cpu(*arguments: Any, **more: Any) -> Tensor:
        return info_nce(*arguments, **more) * torch.ones(1)

    def scale_of_cpu(parameters: Any, max_norm: float) -> float:
        listed = list(parameters)
        torch._foreach_add_([each.grad for each in listed if each.grad is not None][:1], [torch.zeros(1)])
        return clip(listed, max_norm)

    for owner, name, planted in (
        (Chunk, "to", leave_ids),
        (embedder, "pool_padded", mask_of_cpu),
        (embed, "info_nce", weight_of_cpu),
        (plain, "clip_gradients", scale_of_cpu),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, planted)
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                trained(place, f"mix-{planted.__name__}", max_steps=1, activation_memory=0)
