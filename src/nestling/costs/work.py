"""What a model computes: floating-point operations of linear layers and attention, two for a multiplication and sum.

Attention counts every pair of tokens of a text; a kernel for causal models skips nearly half of them. Norms, activation
functions, the loss and the reranker's two words (or one row of its vocabulary a prompt) are left out.
"""

from dataclasses import dataclass

from torch import nn

from nestling.models.token_model import TokenModel


@dataclass(frozen=True)
class Reading:
    """What a model reads.

    Args:
        tokens: Tokens that run through it.
        keys: For each token the tokens that it attends to, summed.
    """

    tokens: float
    keys: float

    @classmethod
    def texts(cls, count: float, length: float, before: float = 0.0) -> "Reading":
        """So many texts of a length, each behind a beginning that has run already."""
        return cls(count * length, count * length * (before + length))

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(self.tokens + other.tokens, self.keys + other.keys)

    def times(self, count: float) -> "Reading":
        return Reading(self.tokens * count, self.keys * count)


@dataclass(frozen=True)
class ModelRuns:
    """Operations of one pass.

    Args:
        forward: Without what comes after the last layer.
        backward: Without what is computed again for it.
    """

    forward: float
    backward: float


def passes_of(model: TokenModel, reading: Reading) -> ModelRuns:
    """Operations of a model that reads something.

    Forward, each weight of a linear layer takes 2 operations a token, and each dimension of each head 4 for a token and
    one that it attends to. Backward it is twice as much, but once where weights are frozen: they need no gradient.
    """
    layers = [each for each in model.transformer.modules() if isinstance(each, nn.Linear)]
    frozen = sum(each.weight.numel() for each in layers if not each.weight.requires_grad)
    trained = sum(each.weight.numel() for each in layers if each.weight.requires_grad)
    attention = 4 * attention_width(model) * reading.keys
    return ModelRuns(
        forward=2 * (frozen + trained) * reading.tokens + attention,
        backward=(2 * frozen + 4 * trained) * reading.tokens + 2 * attention,
    )


def attention_width(model: TokenModel) -> int:
    """Dimensions of all heads of all layers."""
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    per_head = getattr(config, "head_dim", None) or width // heads
    return int(config.num_hidden_layers * heads * per_head)
