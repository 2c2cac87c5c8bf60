"""What several losses compute with: dtypes, temperatures, masked softmaxes.

Shapes: Q queries, G documents of a query.
"""

import torch
from torch import Tensor


def check_temperature(temperature: float) -> None:
    """ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; expected a number above 0")


def loss_dtype(inputs: Tensor) -> torch.dtype:
    """The dtype in which a loss of `inputs` is computed: float64 for float64, else float32."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def masked_log_softmax(logits: Tensor, absent: Tensor) -> Tensor:
    """Log softmax of each row over the entries that are not `absent`, [Q, G]; absent entries get meaningless values."""
    lowest = torch.finfo(logits.dtype).min  # not -inf: a row without entries must give finite values and gradients
    return logits.masked_fill(absent, lowest).log_softmax(dim=1)


def kl_divergence(target: Tensor, predicted: Tensor, absent: Tensor | None = None) -> Tensor:
    """KL(target || predicted) of each row of log softmaxes, [Q, G] to [Q], over the entries that are not `absent`."""
    entries = target.exp() * (target - predicted)
    return (entries if absent is None else entries.masked_fill(absent, 0)).sum(dim=1)
