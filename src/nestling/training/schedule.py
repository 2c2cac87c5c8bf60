"""How long a run trains, and the learning rate of each step."""

import math
from collections.abc import Callable
from functools import partial

from nestling.batches.sampling import BatchSampler, round_up
from nestling.config import TrainingConfig


def total_steps(config: TrainingConfig, batch_sampler: BatchSampler) -> int:
    """Steps of the whole run."""
    return config.max_steps or round_up(config.num_train_epochs * batch_sampler.steps_per_epoch)


def learning_rate_schedule(config: TrainingConfig, total: int) -> Callable[[int], float]:
    """From a step to its learning rate, for a run of `total` steps."""
    return partial(
        learning_rate_at,
        total=total,
        peak=config.learning_rate,
        warmup=round(config.warmup_ratio * total),
        schedule=config.lr_scheduler_type,
    )


def learning_rate_at(step: int, *, total: int, peak: float, warmup: int, schedule: str) -> float:
    """Learning rate of step 0, 1, …: linear warm-up to `peak`, then `schedule` down to zero at step `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    left = (total - step) / max(1, total - warmup)
    return peak * {"constant_with_warmup": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[schedule]
