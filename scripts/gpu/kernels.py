"""What runs on a GPU during a chunk, and what cuDNN's attention does to new shapes."""

from collections.abc import Iterable
from functools import partial
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from nestling.gpu import synchronize
from scripts.gpu.place import Place
from scripts.gpu.training_step import TrainingStep, open_step

LONGEST_KERNELS = 10


def profile(place: Place) -> None:
    """Launches, busy share and the longest kernels of a chunk, forward and backward."""
    step = open_step(place, "lora", rows=place.size(64, 4))
    run_chunk(step)
    kind = ProfilerActivity.CUDA if place.gpu else ProfilerActivity.CPU
    with profiler(activities=[kind]) as found:
        run_chunk(step)
        synchronize(place.device)
    device = DeviceType.CUDA if place.gpu else DeviceType.CPU
    events = [each for each in found.events() or [] if each.device_type == device]
    spans = [(each.time_range.start, each.time_range.end) for each in events]
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    place.add("profile of a chunk", launches=len(events), milliseconds=whole / 1e3, busy=busy_time(spans) / whole)
    times: dict[str, list[float]] = {}
    for each in events:
        times.setdefault(each.name, []).append(each.time_range.elapsed_us())
    for name, took in sorted(times.items(), key=lambda item: -sum(item[1]))[:LONGEST_KERNELS]:
        place.add("longest kernels", kernel=name[:90], launches=len(took), milliseconds=sum(took) / 1e3)


def run_chunk(step: TrainingStep) -> None:
    """Forward and backward of the first chunk."""
    chunk = step.batch(step.place.size(16384, 64)).chunks[0]
    with step.backend.computing():
        output = step.backend.forward(chunk, last_backward=True)
    step.backend.backward(output, torch.ones_like(output), last=True)


def busy_time(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of some spans, from start to end, was going on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def cudnn(place: Place) -> None:
    """First and second call of attention, forward and backward, for shapes that were not seen before."""
    for allowed in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        attend(place, 1, 16)  # so that libraries are loaded
        shapes = [(place.size(16384, 512) // length, length) for length in range(24, 512, place.size(32, 256))]
        calls = [[place.seconds(partial(attend, place, *shape)) for _ in range(2)] for shape in shapes]
        first, again = (1e3 * median(call[i] for call in calls) for i in range(2))
        place.add("attention of new shapes", cuDNN=allowed, first_ms=first, again_ms=again, shapes=len(calls))


def attend(place: Place, texts: int, length: int) -> None:
    shapes = [(texts, heads, length, 128) for heads in (16, 8, 8)]
    query, key, value = (
        torch.zeros(shape, device=place.device, dtype=place.precision, requires_grad=True) for shape in shapes
    )
    scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()
