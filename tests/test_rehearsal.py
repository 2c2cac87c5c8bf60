"""Steps before the first: real ones of a small kind."""

import torch

from nestling.packing import TokenBatch, pack
from nestling.rehearsal import PeakMemory, rehearse

CPU = torch.device("cpu")
TEXTS = [[5] * length for length in (7, 3, 9, 1)]


def test_every_size_runs_on_the_same_texts() -> None:
    batch = pack(TEXTS, 16, 0)
    seen: list[TokenBatch] = []
    found = list(rehearse(seen.append, batch, [16, 8, 64], 0, CPU))
    assert [each.chunk_tokens for each in found] == [16, 8, 64]
    # The first size runs twice, to warm up.
    assert [len(each.chunks) for each in seen] == [len(pack(TEXTS, size, 0).chunks) for size in (16, 16, 8, 64)]
    assert all(each.tokens == 20 for each in seen)
    assert found[-1].padding == 36 / 20
    assert all(each.peak and each.seconds > 0 for each in found)


def test_a_size_that_does_not_fit_ends_the_rehearsal() -> None:
    def step(tokens: TokenBatch) -> None:
        if max(chunk.positions for chunk in tokens.chunks) > 9:
            raise torch.OutOfMemoryError

    batch = pack(TEXTS, 8, 0)
    found = list(rehearse(step, batch, [8, 64, 128], 0, CPU))
    assert [(each.chunk_tokens, each.peak is None) for each in found] == [(8, False), (64, True)]


def test_the_peak_is_what_was_in_use() -> None:
    peak, more = PeakMemory(CPU), PeakMemory(CPU)
    with peak:
        torch.ones(1000)
    with more:
        held = torch.ones(50_000_000)
        held += 1
    assert 150e6 < more.bytes - peak.bytes < 300e6
