"""Steps before the first: real ones of a small kind."""

import pytest
import torch

from nestling.batches.packing import pack
from nestling.training.profiling import PeakMemory, profile_step, profile_table, profiled_sizes

CPU = torch.device("cpu")
TEXTS = [[5] * length for length in (7, 3, 9, 1)]


def test_every_size_runs() -> None:
    seen: list[int] = []

    def step(size: int) -> tuple[int, int]:
        seen.append(size)
        batch = pack(TEXTS, size, 0)
        return batch.tokens, sum(chunk.positions for chunk in batch.chunks)

    found = list(profile_step(step, [16, 8, 64], CPU))
    assert [each.chunk_tokens for each in found] == [16, 8, 64]
    assert seen == [16, 16, 8, 64]  # the first size runs twice, to warm up
    assert found[-1].padding == 36 / 20
    assert all(each.peak and each.seconds > 0 for each in found)
    assert "20 tokens a step; fastest here: --chunk_tokens " in profile_table(found, 20)


def test_a_size_that_does_not_fit_ends_the_profile() -> None:
    def step(size: int) -> tuple[int, int]:
        batch = pack(TEXTS, size, 0)
        if max(chunk.positions for chunk in batch.chunks) > 9:
            raise torch.OutOfMemoryError
        return batch.tokens, batch.tokens

    found = list(profile_step(step, [8, 64, 128], CPU))
    assert [(each.chunk_tokens, each.peak is None) for each in found] == [(8, False), (64, True)]


def test_smaller_sizes_go_on_where_the_size_that_is_set_does_not_fit() -> None:
    def step(size: int) -> tuple[int, int]:
        if size > 10:
            raise torch.OutOfMemoryError
        return 20, 20

    found = list(profile_step(step, profiled_sizes(32, 1), CPU))
    assert [(each.chunk_tokens, each.peak is None) for each in found] == [(32, True), (8, False), (16, True)]
    shown = profile_table(found, 20)
    assert "out of memory with --chunk_tokens 32" in shown
    assert "nan" not in shown
    assert shown.endswith("fastest here: --chunk_tokens 8")


def test_the_clock_is_read_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting, 2,000 tokens/s were shown as 4.4 million."""
    seen: list[str] = []
    monkeypatch.setattr("nestling.training.profiling.synchronize", lambda device: seen.append("wait"))
    monkeypatch.setattr("time.perf_counter", lambda: seen.append("clock") or len(seen))  # type: ignore[func-returns-value]

    def step(size: int) -> tuple[int, int]:
        seen.append("step")
        return 1, 1

    list(profile_step(step, [8], CPU))
    assert seen == ["step", "wait", "clock", "step", "wait", "clock"]


def test_ids_of_a_batch_are_its_texts() -> None:
    assert pack(TEXTS, 16, 0).ids() == pack(TEXTS, 16, 0, padding_free=True).ids() == TEXTS


def test_the_peak_is_what_was_in_use() -> None:
    peak, more = PeakMemory(CPU), PeakMemory(CPU)
    with peak:
        torch.ones(1000)
    with more:
        held = torch.ones(50_000_000)
        held += 1
    assert 150e6 < more.bytes - peak.bytes < 300e6
