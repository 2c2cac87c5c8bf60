"""Floating-point operations of linear layers and attention; a multiply-add counts as two.

Attention counts every pair of tokens of a text, although kernels for causal models skip nearly half of them. Norms,
activation functions, the loss and the output layer of a reranker are not counted.
"""

from dataclasses import dataclass

from torch import nn

from nestling.models.token_model import TokenModel


@dataclass(frozen=True)
class Workload:
    """The texts that a model processes.

    Args:
        tokens: Number of tokens.
        attended_tokens: Number of tokens that each token attends to, summed over all tokens.
    """

    tokens: float
    attended_tokens: float

    @classmethod
    def texts(cls, count: float, length: float, before: float = 0.0) -> "Workload":
        """`count` texts of `length` tokens, each after a prefix of `before` tokens that is computed already."""
        return cls(count * length, count * length * (before + length))

    @property
    def length(self) -> float:
        """Mean number of tokens that a token attends to."""
        return self.attended_tokens / self.tokens

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(self.tokens + other.tokens, self.attended_tokens + other.attended_tokens)

    def times(self, count: float) -> "Workload":
        return Workload(self.tokens * count, self.attended_tokens * count)


@dataclass(frozen=True)
class PassOperations:
    """Floating-point operations of the passes over a workload.

    Args:
        forward: Operations of the forward pass up to the last layer.
        backward: Operations of the backward pass, without recomputation.
    """

    forward: float
    backward: float


def operations_of(model: TokenModel, workload: Workload) -> PassOperations:
    """Operations of the passes of a model over a workload.

    The forward pass takes 2 operations for each token and weight of a linear layer, and 4 for each token, token that it
    attends to and dimension of a head. The backward pass takes twice as many, but for frozen weights, which need no
    gradient, as many as the forward pass.
    """
    layers = [each for each in model.transformer.modules() if isinstance(each, nn.Linear)]
    frozen = sum(each.weight.numel() for each in layers if not each.weight.requires_grad)
    trained = sum(each.weight.numel() for each in layers if each.weight.requires_grad)
    attention = 4 * attention_width(model) * workload.attended_tokens
    return PassOperations(
        forward=2 * (frozen + trained) * workload.tokens + attention,
        backward=(2 * frozen + 4 * trained) * workload.tokens + 2 * attention,
    )


def attention_width(model: TokenModel) -> int:
    """Total dimensions of the heads of all layers."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    per_head = getattr(config, "head_dim", None) or width // heads
    return int(config.num_hidden_layers * heads * per_head)
