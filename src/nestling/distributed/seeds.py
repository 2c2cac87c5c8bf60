"""Seeds of torch's random numbers, the same on all ranks or different on each."""

import numpy as np
import torch


def seed_torch(*numbers: int) -> None:
    """Make torch's random numbers a function of whole numbers, (seed, step, rank) say, on the CPU and on GPUs."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
