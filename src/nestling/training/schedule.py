"""The learning-rate schedule: warm-up, then down to zero."""

import math
from collections.abc import Callable
from functools import partial

from nestling.batches.sampling import BatchSampler


def learning_rate_at(step: int, *, total: int, peak: float, warmup: int, schedule: str) -> float:
    """Learning rate of step 0, 1, …: linear warm-up to `peak`, then `schedule` down to zero at step `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    left = (total - step) / max(1, total - warmup)
    return peak * {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[schedule]


def total_steps(batch_sampler: BatchSampler, *, epochs: float, max_steps: int | None) -> int:
    """Steps of a whole run."""
    return max_steps or math.ceil(epochs * batch_sampler.steps_per_epoch)


def course(total: int, *, peak: float, warmup: float, schedule: str) -> Callable[[int], float]:
    """The learning rate of each step."""
    return partial(learning_rate_at, total=total, peak=peak, warmup=round(warmup * total), schedule=schedule)
