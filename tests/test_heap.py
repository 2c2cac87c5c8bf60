"""The heap gives back what is free."""

import platform
import subprocess
import sys

import pytest

import nestling.heap
from nestling.heap import CHUNKS, trimming

PINNED = """
import psutil
from nestling.heap import trim_heap
blocks = [b"x" * 100_000 + bytes([i % 7]) for i in range(2000)]
del blocks[:-1]  # the last one lies at the top of the heap
before = psutil.Process().memory_info().rss
trim_heap()
print((before - psutil.Process().memory_info().rss) / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_free_memory_below_a_used_block_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150


COPIES = """
import psutil, torch
from nestling.heap import return_large_blocks
return_large_blocks()
kept, before = [], psutil.Process().memory_info().rss
for i in range(100):
    copy = torch.ones((1024, 1024 * (1 + i % 3)), dtype=torch.bfloat16).float()
    kept.append(torch.ones(500))
    del copy
print((psutil.Process().memory_info().rss - before) / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_copies_beside_small_results_do_not_make_the_heap_grow() -> None:
    done = subprocess.run([sys.executable, "-c", COPIES], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # about 440 otherwise


def test_items_are_passed_through_and_the_heap_is_trimmed_regularly(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(nestling.heap, "trim_heap", lambda: trims.append(len(seen)))
    seen: list[int] = []
    for item in trimming(range(2 * CHUNKS + 3)):
        seen.append(item)
    assert seen == list(range(2 * CHUNKS + 3))
    assert trims == [CHUNKS, 2 * CHUNKS]
